#!/bin/sh
# What the tests of the web page need besides Python: Chromium, and Node 20 or newer. Installs what is missing with apt,
# as root or by sudo without a password, or says that it is missing. Those tests then are skipped, but fail in CI.
missing() {
    command -v chromium > /dev/null || command -v chromium-browser > /dev/null || echo chromium
    node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2> /dev/null || echo nodejs
}
[ -z "$(missing)" ] && exit 0
root=""
[ "$(id -u)" = 0 ] || root="sudo -n"
if command -v apt-get > /dev/null && $root true 2> /dev/null; then
    $root apt-get update -qq
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(missing) > /dev/null
fi
[ -z "$(missing)" ] || echo "make: tests of the web page are left out, as this is missing (Node 20 or newer):" $(missing) >&2
