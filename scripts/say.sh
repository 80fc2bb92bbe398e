# How the scripts talk: one line per step, colours only on terminals.
# shellcheck shell=bash

if [ -t 1 ]; then
    say_bold=$'\e[1m' say_red=$'\e[31m' say_green=$'\e[32m' say_plain=$'\e[0m'
else
    say_bold='' say_red='' say_green='' say_plain=''
fi

step() { printf '%s== %s%s\n' "$say_bold" "$*" "$say_plain"; }
note() { printf '   %s\n' "$*"; }
die() {
    printf '%s!! %s%s\n' "$say_red" "$*" "$say_plain" >&2
    exit 1
}
