#!/bin/sh
# compile.sh LOG COMMAND...: runs the command and keeps what it says, shown only when it fails.
log=$1
shift
if "$@" >"$log.new" 2>&1; then
    mv "$log.new" "$log"
else
    cat "$log.new" >&2
    rm -f "$log.new"
    exit 1
fi
