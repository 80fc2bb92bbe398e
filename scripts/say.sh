# What the scripts share: how they talk, and where Rust is. Source it.
# One line per step; colours only on terminals.
# shellcheck shell=bash

if [ -t 1 ]; then
    say_bold=$'\e[1m' say_red=$'\e[31m' say_plain=$'\e[0m'
else
    say_bold='' say_red='' say_plain=''
fi

# Distributions that carry several compilers keep each in a folder of its own.
for rust_folder in /usr/lib/rust-*/bin; do
    if [ -d "$rust_folder" ]; then PATH="$rust_folder:$PATH"; fi
done
export PATH="$HOME/.cargo/bin:$PATH"

step() { printf '%s== %s%s\n' "$say_bold" "$*" "$say_plain"; }
note() { printf '   %s\n' "$*"; }
die() {
    printf '%s!! %s%s\n' "$say_red" "$*" "$say_plain" >&2
    exit 1
}

# timed WHAT COMMAND...: says what is done, every half minute that it still is, and how long it
# took. The command's output is shown only when it fails.
timed() {
    local what=$1 log begin=$SECONDS result=0 pulse
    shift
    step "$what"
    log=$(mktemp)
    (
        trap 'kill "$sleeping" 2>/dev/null; exit' TERM
        while true; do
            sleep 30 &
            sleeping=$!
            wait "$sleeping"
            # Ctrl-C ends the script, but not what it has in the background.
            kill -0 $$ 2>/dev/null || exit
            note "still at it after $((SECONDS - begin)) s"
        done
    ) &
    pulse=$!
    "$@" >"$log" 2>&1 </dev/null || result=$?
    kill "$pulse" 2>/dev/null
    wait "$pulse" 2>/dev/null || true
    if [ "$result" = 0 ]; then
        note "done in $((SECONDS - begin)) s"
    else
        note "failed after $((SECONDS - begin)) s; the end of what it said:"
        tail -n 20 "$log" | sed 's/^/   | /'
    fi
    rm -f "$log"
    return "$result"
}
