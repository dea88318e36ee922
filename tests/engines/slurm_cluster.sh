#!/usr/bin/env bash
# A private SLURM with two nodes, n1 and n2 of two CPUs each, on this one machine: for tests. It needs root and Debian's
# slurmctld, slurmd, slurm-client and munge; no systemd, no cgroups, no database.
#
#   slurm_cluster.sh up DIRECTORY      then: export SLURM_CONF=DIRECTORY/slurm.conf
#   slurm_cluster.sh node n2 DIRECTORY      starts a node again that was lost
#   slurm_cluster.sh down DIRECTORY
#
# Time runs faster than on a real cluster: a requeued job waits 6 s instead of 121 (it has to outlive the credentials of
# its first start: AuthInfo's cred_expire), a node that does not answer is given up after 10 s instead of 300, and what
# was asked to end has 15 s (KillWait) instead of 30. Jobs of partition "urgent" pre-empt those of "main".
set -euo pipefail
command=${1:?up, node or down}
directory=$(realpath -m "${*: -1}")
export SLURM_CONF=$directory/slurm.conf
mark="# slurm_cluster.sh"

configure() {
    local host memory
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 2048)}' /proc/meminfo)
    cat > "$SLURM_CONF" <<CONF
ClusterName=private
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge.sock,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
KillWait=15
SlurmdTimeout=10
ReturnToService=2
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool/%n
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd-%n.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd-%n.log
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26821 CPUs=2 RealMemory=$memory
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=26822 CPUs=2 RealMemory=$memory
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL PriorityTier=2
CONF
}

up() {
    mkdir -p "$directory"/{state,spool/n1,spool/n2}
    chmod 755 "$directory" # munge refuses a socket in a directory that others can write
    # jax.distributed finds its coordinator by the name of the first node, so the names have to resolve.
    grep -q "$mark" /etc/hosts || echo "127.0.0.1 n1 n2 $mark" >> /etc/hosts
    head -c 1024 /dev/urandom > "$directory/munge.key"
    chmod 400 "$directory/munge.key"
    munged --force --key-file="$directory/munge.key" --socket="$directory/munge.sock" --num-threads=1 \
        --pid-file="$directory/munged.pid" --log-file="$directory/munged.log" --seed-file="$directory/munge.seed"
    configure
    slurmctld -c
    node n1
    node n2
    for _ in $(seq 100); do
        [ "$(sinfo -h -p main -o %T)" = idle ] && exit 0
        sleep 0.2
    done
    sinfo >&2
    exit 1
}

node() {
    slurmd -N "$1"
}

down() {
    local file
    scancel --user="$(id -un)" || true
    for _ in $(seq 100); do # no longer than KillWait and a little: what runs has to be over before its node goes
        [ -z "$(squeue -h)" ] && break
        sleep 0.2
    done
    for file in "$directory"/{slurmd-n1,slurmd-n2,slurmctld,munged}.pid; do
        [ -s "$file" ] && end "$(cat "$file")" || true
    done
    sed "/$mark/d" /etc/hosts > "$directory/hosts" && cat "$directory/hosts" > /etc/hosts # a mount in containers
}

end() {
    kill "$1" 2> /dev/null || return 0
    for _ in $(seq 25); do
        kill -0 "$1" 2> /dev/null || return 0
        sleep 0.2
    done
    kill -KILL "$1" 2> /dev/null
}

case $command in
    up) up ;;
    node) node "$2" ;;
    down) down ;;
    *) echo "up, node or down, not $command" >&2 && exit 2 ;;
esac
