#!/usr/bin/env bash
# Builds the virtual environments of the peers, in the root of the repository:
#
#     benchmarks/peers/setup.sh            all of them
#     benchmarks/peers/setup.sh spu        .venv-spu (needs CPython 3.10 or 3.11; about 1 GB)
#     benchmarks/peers/setup.sh crypten    .venv-crypten
#     benchmarks/peers/setup.sh he         .venv-he (CPython 3.10 or 3.11), for benchmarks/paillier.py
#     benchmarks/peers/setup.sh psi        .venv-psi, for benchmarks/alignment.py
#     benchmarks/peers/setup.sh flower     .venv-flower (CPython 3.11 or newer), for benchmarks/federated.py
#
# PYTHON_SPU, PYTHON_CRYPTEN, PYTHON_HE, PYTHON_PSI and PYTHON_FLOWER name an interpreter to use instead of the one found.
# An environment that is already complete is left as it is; delete its folder to build it anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

# find_python WHAT CHOICE NAME...: prints the first interpreter that runs and has one of the versions in the names.
find_python() {
    local what=$1 choice=$2 name
    shift 2
    if [ -n "$choice" ]; then
        "$choice" -c 'import sys, venv, ensurepip' 2>/dev/null ||
            fail "$choice (asked for $what) does not run, or has no venv module"
        echo "$choice"
        return
    fi
    for name in "$@"; do
        # a command may be found and still not run: version managers leave such stand-ins in the path
        if "$name" -c 'import sys, venv, ensurepip' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    fail "$what needs one of: $*; none of them runs here with its venv module." \
         "Install one (on Debian and Ubuntu also the matching -venv package)" \
         "or name one with PYTHON_${what^^}=/path/to/python."
}

# Each of these leaves a file "complete" as its last step, so that an interrupted build is not taken for a good one.
make_spu() {
    local python env=.venv-spu
    [ -e $env/complete ] && { echo "$env is complete"; return; }
    python=$(find_python spu "${PYTHON_SPU:-}" python3.11 python3.10)
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' ||
        fail "$python is $("$python" -V); SPU 0.9.5 has wheels for CPython 3.10 and 3.11 only." \
            "Set PYTHON_SPU to one of these."
    "$python" -m venv --clear $env
    # 0.9.5 does not work with a newer JAX, nor this JAX with numpy 2
    $env/bin/pip install --quiet spu==0.9.5 jax==0.4.34 jaxlib==0.4.34 numpy==1.26.4 scipy
    $env/bin/python -c 'import jax, spu' || fail "$env was built, but SPU or JAX does not import (message above)"
    touch $env/complete
    echo "$env is ready"
}

make_crypten() {
    local python env=.venv-crypten
    [ -e $env/complete ] && { echo "$env is complete"; return; }
    python=$(find_python crypten "${PYTHON_CRYPTEN:-}" python3.11 python3.12 python3.10 python3)
    "$python" -m venv --clear $env
    $env/bin/pip install --quiet torch==2.13.0
    $env/bin/pip install --quiet pyyaml omegaconf onnx pandas future
    # CrypTen asks for an old torch and scikit-learn that it can do without here
    $env/bin/pip install --quiet --no-deps crypten==0.4.1
    $env/bin/python -c 'import torch, omegaconf, onnx' ||
        fail "$env was built, but a package does not import (message above)"
    touch $env/complete
    echo "$env is ready"
}

make_he() {
    local python package got=0 env=.venv-he
    [ -e $env/complete ] && { echo "$env is complete"; return; }
    python=$(find_python he "${PYTHON_HE:-}" python3.11 python3.10)
    "$python" -m venv --clear $env
    $env/bin/pip install --quiet numpy==2.2.6
    # "package module": one that has no wheel here, or does not import, is left out
    for package in "sf-heu==0.5.2b0 heu" "tenseal==0.3.18 tenseal"; do
        set -- $package
        if $env/bin/pip install --quiet --only-binary :all: "$1" && $env/bin/python -c "import $2"; then
            got=1
        else
            $env/bin/pip uninstall --quiet --yes "${1%%=*}"
            echo "setup.sh: $1 does not install here (message above); it is left out" >&2
        fi
    done
    if [ $got = 0 ]; then
        rm -r $env
        echo "setup.sh: neither HEU nor TenSEAL installs here; there is no $env" >&2
        return
    fi
    touch $env/complete
    echo "$env is ready"
}

make_psi() {
    local python env=.venv-psi
    [ -e $env/complete ] && { echo "$env is complete"; return; }
    python=$(find_python psi "${PYTHON_PSI:-}" python3.11 python3.12 python3.10 python3)
    "$python" -m venv --clear $env
    $env/bin/pip install --quiet openmined.psi==2.0.6
    $env/bin/python -c 'import private_set_intersection.python' ||
        fail "$env was built, but OpenMined's PSI does not import (message above)"
    touch $env/complete
    echo "$env is ready"
}

make_flower() {
    local python env=.venv-flower
    [ -e $env/complete ] && { echo "$env is complete"; return; }
    python=$(find_python flower "${PYTHON_FLOWER:-}" python3.11 python3.12 python3.13 python3)
    "$python" -m venv --clear $env
    $env/bin/pip install --quiet flwr==1.42.0 numpy==2.4.6
    $env/bin/python -c 'import flwr.server.workflow' || fail "$env was built, but Flower does not import (message above)"
    touch $env/complete
    echo "$env is ready"
}

case "${1:-all}" in
    spu) make_spu ;;
    crypten) make_crypten ;;
    he) make_he ;;
    psi) make_psi ;;
    flower) make_flower ;;
    all) make_spu; make_crypten; make_he; make_psi; make_flower ;;
    *) fail "unknown environment '$1'; the choices are: spu, crypten, he, psi, flower, all" ;;
esac
