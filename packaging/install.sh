#!/bin/sh
# install.sh - puts tracecraftd and tracecraftctl, their man pages and completions below a prefix, or takes them away again.
#
# From an unpacked release archive, or from a source tree, which it builds first. It fetches nothing (cargo does, where it
# builds), needs no root for a prefix that is yours, starts no service, touches no configuration, no state and no bucket, and says
# each file that it writes or removes. A program that runs goes on as it was: files are replaced, never written into, and only by
# programs that have been seen to run here.
set -eu
umask 022

usage() {
    cat <<'END'
usage: install.sh [--prefix DIR] [--checksums FILE] [--uninstall]

  --prefix DIR      where to: DIR/bin, DIR/share [default: ~/.local]
  --checksums FILE  SHA-256 digests, as sha256sum prints them, of files beside this script: checked before anything is written.
                    The SHA256SUMS of an archive is checked in any case
  --uninstall       remove what it installed there. Refused while a service of yours (with sudo: of whoever asked) or any process
                    that it may see has the program; services of others that do not run now are not looked for

Examples:
  ./install.sh
  sudo ./install.sh --prefix /usr/local
  ./install.sh --uninstall
END
}

# fail CODE WHAT TRY
fail() {
    printf 'install.sh: %s\ntry: %s\n' "$2" "$3" >&2
    exit "$1"
}

prefix=${HOME:+$HOME/.local}
checksums=
uninstall=
while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --checksums)
            [ $# -gt 1 ] || fail 2 "$1 needs a value" "install.sh --help"
            if [ "$1" = --prefix ]; then prefix=$2; else checksums=$2; fi
            shift
            ;;
        --uninstall) uninstall=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail 2 "$1 is not known" "install.sh --help" ;;
    esac
    shift
done
case $prefix in
    /*) ;;
    *) fail 2 "the prefix '$prefix' is no absolute path" "install.sh --prefix \"\$HOME/.local\"" ;;
esac
case $checksums in
    '' | /*) ;;
    *) checksums=$PWD/$checksums ;;
esac
here=$(cd "$(dirname "$0")" && pwd)

# A file that is not whole yet. Whatever ends this script, it does not stay.
unfinished=
trap 'if [ -n "$unfinished" ]; then rm -f "$unfinished"; fi' EXIT
trap 'exit 1' HUP INT TERM

bash_completion=$prefix/share/bash-completion/completions/tracecraftctl
zsh_completion=$prefix/share/zsh/site-functions/_tracecraftctl
fish_completion=$prefix/share/fish/vendor_completions.d/tracecraftctl.fish

# check FILE: every digest in it, of files beside this script.
check() {
    [ -f "$1" ] || fail 1 "there is no $1" "give --checksums a file that is there"
    if command -v sha256sum >/dev/null; then
        tool='sha256sum'
    else
        tool='shasum -a 256'
    fi
    # An empty list would agree with anything.
    grep -q '^[0-9a-f]\{64\} ' "$1" || fail 1 "$1 has no SHA-256 digests" "take the SHA256SUMS of the release"
    # shellcheck disable=SC2086 # Two words are meant.
    (cd "$here" && $tool -c "$1" >/dev/null 2>&1) ||
        fail 1 "files are not what $1 says" "download the release again"
    echo "checked   $1"
}

# try_run PROGRAM: before anything is replaced. One for another machine, or for newer libraries, would leave none that works.
try_run() {
    said=$("$1" --version 2>&1) ||
        fail 1 "$1 does not run here: $said" "a release archive for $(uname -sm), unpacked where programs may run, or a source tree"
}

# finish TO: what is unfinished is whole, and takes its place.
finish() {
    mv -f "$unfinished" "$1"
    unfinished=
    echo "installed $1"
}

# put FROM TO MODE
put() {
    mkdir -p "$(dirname "$2")"
    unfinished=$2.new$$
    cp "$1" "$unfinished"
    chmod "$3" "$unfinished"
    finish "$2"
}

# put_completion SHELL TO: written by the program itself.
put_completion() {
    mkdir -p "$(dirname "$2")"
    unfinished=$2.new$$
    "$prefix/bin/tracecraftctl" completions "$1" >"$unfinished"
    finish "$2"
}

install_all() {
    if [ -n "$checksums" ]; then check "$checksums"; fi
    if [ -f "$here/SHA256SUMS" ]; then check "$here/SHA256SUMS"; fi
    if [ -f "$here/bin/tracecraftd" ]; then
        programs=$here/bin
        pages=$here/man
    elif [ -f "$here/../Cargo.toml" ]; then
        command -v cargo >/dev/null || fail 1 "a source tree needs cargo to build it" "https://rustup.rs, or a release archive"
        echo "building  cargo build --release --locked"
        (cd "$here/.." && cargo build --release --locked)
        programs=${CARGO_TARGET_DIR:-$here/../target}/release
        pages=$here/man
    else
        fail 1 "there is neither a release archive nor a source tree around $here" "leave install.sh where it was unpacked"
    fi
    try_run "$programs/tracecraftd"
    try_run "$programs/tracecraftctl"
    put "$programs/tracecraftd" "$prefix/bin/tracecraftd" 755
    put "$programs/tracecraftctl" "$prefix/bin/tracecraftctl" 755
    for page in "$pages"/*.[15]; do
        put "$page" "$prefix/share/man/man${page##*.}/${page##*/}" 644
    done
    put_completion bash "$bash_completion"
    put_completion zsh "$zsh_completion"
    put_completion fish "$fish_completion"
    case :${PATH-}: in
        *":$prefix/bin:"*) command=tracecraftctl ;;
        *)
            command=$prefix/bin/tracecraftctl
            echo "note: $prefix/bin is not in your PATH"
            ;;
    esac
    echo "next: $command service install"
}

# take FILE: removed, if it is there.
take() {
    [ -e "$1" ] || return 0
    rm -f "$1"
    echo "removed   $1"
}

# home_of USER
home_of() {
    if command -v getent >/dev/null; then
        getent passwd "$1" | cut -d : -f 6
    else
        # A name with other letters than these would be more than a name to the shell.
        case $1 in
            *[!A-Za-z0-9._-]*) ;;
            *) eval "printf '%s\\n' ~$1" ;;
        esac
    fi
}

# refuse_service CONFIG_HOME HOME: if the user that these belong to has a service of this program.
refuse_service() {
    for service in "$1/systemd/user/tracecraftd.service" "$2/Library/LaunchAgents/tracecraft.tracecraftd.plist"; do
        if grep -qF "$prefix/bin/tracecraftd" "$service" 2>/dev/null; then
            fail 1 "$service still runs the program" \
                "$prefix/bin/tracecraftctl service uninstall, as the user whose it is, then this again"
        fi
    done
}

# Whoever else's service it is: root sees every process, others their own. Only Linux tells so.
refuse_process() {
    bin=$(cd "$prefix/bin" 2>/dev/null && pwd -P) || return 0
    for process in /proc/[0-9]*; do
        # One that was replaced since it began is told as deleted.
        case $(readlink "$process/exe" 2>/dev/null) in
            "$bin/tracecraftd" | "$bin/tracecraftd (deleted)")
                fail 1 "process ${process#/proc/} still runs the program" \
                    "$prefix/bin/tracecraftctl service uninstall, as the user whose it is, then this again"
                ;;
        esac
    done
}

uninstall_all() {
    refuse_service "${XDG_CONFIG_HOME:-${HOME-}/.config}" "${HOME-}"
    if [ -n "${SUDO_USER-}" ]; then
        home=$(home_of "$SUDO_USER")
        refuse_service "$home/.config" "$home"
    fi
    refuse_process
    take "$prefix/bin/tracecraftd"
    take "$prefix/bin/tracecraftctl"
    for page in "$prefix"/share/man/man1/tracecraftd.1 "$prefix"/share/man/man1/tracecraftctl.1 \
        "$prefix"/share/man/man1/tracecraftctl-*.1 "$prefix"/share/man/man5/tracecraft-config.5; do
        take "$page"
    done
    take "$bash_completion"
    take "$zsh_completion"
    take "$fish_completion"
    # Directories that are empty now; that something else is in them is the usual case.
    for folder in bin share/man/man1 share/man/man5 share/man share/bash-completion/completions share/bash-completion \
        share/zsh/site-functions share/zsh share/fish/vendor_completions.d share/fish share; do
        rmdir "$prefix/$folder" 2>/dev/null || true
    done
    echo "what is stored, state and configuration stay where they are"
}

if [ -n "$uninstall" ]; then uninstall_all; else install_all; fi
