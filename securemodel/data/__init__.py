"""Tables of several parties as one: alignment, statistics, preparation and evaluation, without anybody seeing another's rows."""
