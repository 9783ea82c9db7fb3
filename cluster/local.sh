#!/usr/bin/env bash
# A real Ray of several nodes on this machine: a head without work and N workers, token and all.
#   cluster/local.sh up [WORKERS] [CPUS]   start (default 2 workers with 1 CPU each)
#   eval "$(cluster/local.sh env)"         RAY_ADDRESS, token and submission address for this shell
#   cluster/local.sh status | down
# It knows its own nodes by process id and ends only those; `ray stop` would end every Ray of the machine.
# Ray replaces the loopback address by one that others reach, and listens on every interface: jobs, objects and
# control need the token, the metrics pages and the store of a training need none. On a shared network keep a
# firewall before it.
set -euo pipefail
umask 077

state=${SAT_RAY_LOCAL_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/sat_ray-cluster}
port=${SAT_RAY_LOCAL_PORT:-26379}
dashboard=$((port + 1))
ray=$(command -v "${RAY:-ray}") || { echo "no ray on the PATH; set RAY=/path/to/ray" >&2 && exit 1; }
# Jobs start `python` from the nodes' PATH: it has to be the Python that Ray belongs to.
PATH=$(dirname "$ray"):$PATH

environment() {
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/auth_token RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=5
}

# A recycled process id must not be ended: the start time is part of a process's name here.
started() { awk '{sub(/.*\) /, ""); print $20}' "/proc/$1/stat" 2>/dev/null || true; }

# Others of this machine must neither read the token nor put a folder of theirs in our way.
require_own() {
    local folder=$1
    if [[ -L $folder || ! -d $folder || ! -O $folder || $(stat -c %a "$folder") != 700 ]]; then
        echo "$folder must be a folder of $(id -un) that nobody else may enter (chmod 700); remove it, or set SAT_RAY_LOCAL_STATE" >&2
        exit 1
    fi
}

# Ray opens its own folder to everybody, so it lies inside a new one that only this user may enter.
# Socket paths below it may not exceed 107 characters, so it is not under $state.
make_session() {
    local session
    session=$(mktemp -d "${TMPDIR:-/tmp}/sat_ray-XXXXXXXX")
    require_own "$session"
    echo "$session" >"$state/session"
    echo "$session/r"
}

remove_session() {
    local session
    [[ -f $state/session ]] || return 0
    session=$(<"$state/session")
    if [[ $session == */sat_ray-???????? && -d $session && ! -L $session && -O $session ]]; then
        rm -rf -- "$session"
    fi
    rm -f "$state/session"
}

launch() {
    local name=$1
    shift
    # A session of its own (setsid): Ray's helpers share the group, and the group is what `down` ends.
    setsid "$ray" start "$@" --block --disable-usage-stats >"$state/$name.log" 2>&1 &
    echo "$! $(started $!)" >"$state/$name.pid"
}

alive() {
    local pid since
    read -r pid since <"$1"
    [[ -n $since && $(started "$pid") == "$since" ]]
}

# Nodes start one after another: two that start at once may choose the same socket name, and one dies.
await() {
    local name=$1 try
    for ((try = 0; try < 90; try++)); do
        grep -q 'Ray runtime started' "$state/$name.log" && return
        alive "$state/$name.pid" || break
        sleep 1
    done
    tail -n 20 "$state/$name.log" >&2
    down
    exit 1
}

up() {
    local workers=${1:-2} cpus=${2:-1}
    if compgen -G "$state/*.pid" >/dev/null; then
        echo "already up, or not put down: cluster/local.sh down" >&2
        exit 1
    fi
    mkdir -p "$state"
    require_own "$state"
    remove_session
    local session
    session=$(make_session)
    [[ -s $state/auth_token ]] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$state/auth_token"
    environment
    launch head --head --node-ip-address=127.0.0.1 --port="$port" --temp-dir="$session" --num-cpus=0 --num-gpus=0 \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --ray-client-server-port=$((port + 2)) \
        --dashboard-agent-listen-port=$((port + 3)) --min-worker-port=$((port + 100)) --max-worker-port=$((port + 299))
    await head
    for ((i = 1; i <= workers; i++)); do
        launch "worker-$i" --address="127.0.0.1:$port" --node-ip-address=127.0.0.1 --num-cpus="$cpus" --num-gpus=0 \
            --labels="sat-ray/pool=cpu" --dashboard-agent-listen-port=$((port + 3 + i)) \
            --min-worker-port=$((port + 100 + 200 * i)) --max-worker-port=$((port + 299 + 200 * i))
        await "worker-$i"
    done
    echo "1 head, $workers workers with $cpus CPU each; dashboard http://127.0.0.1:$dashboard" >&2
    show >&2
}

show() {
    printf 'export RAY_ADDRESS=%q RAY_API_SERVER_ADDRESS=%q RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q\n' \
        "127.0.0.1:$port" "http://127.0.0.1:$dashboard" "$state/auth_token"
}

down() {
    local file pid try
    [[ ! -e $state ]] || require_own "$state" # its files name the processes to end
    # Workers first: they drain towards a head that still answers.
    for file in "$state"/worker-*.pid "$state"/head.pid; do
        [[ -f $file ]] || continue
        if alive "$file"; then
            read -r pid _ <"$file"
            kill -TERM -- "-$pid" 2>/dev/null || true
            for ((try = 0; try < 150; try++)); do
                alive "$file" || break
                sleep 0.1
            done
            kill -KILL -- "-$pid" 2>/dev/null || true
        fi
        rm -f "$file"
    done
    remove_session
}

case ${1:-} in
up) up "${@:2}" ;;
env) show ;;
down) down ;;
status)
    environment
    "$ray" status --address="127.0.0.1:$port"
    ;;
*)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
