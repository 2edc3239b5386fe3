# shellcheck shell=bash
# Sourced by the programs written in bash.
set -euo pipefail
shopt -s inherit_errexit
trap 'echo "line $LINENO: $BASH_COMMAND"' ERR

fail() {
  echo "$*"
  exit 1
}

# together CMD... -- CMD... ...   runs them at once and fails when one of them does
together() {
  local command=() pids=() pid status=0
  while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then
      "${command[@]}" & pids+=($!)
      command=()
    else
      command+=("$1")
    fi
    shift
  done
  "${command[@]}" & pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
  return "$status"
}
