#!/usr/bin/env bash
# A SLURM of one machine, for tests: bash tests/slurm.sh start|stop FOLDER
# Needs root and Debian's slurm-wlm and munge. Everything it writes is below FOLDER; the commands
# find it with SLURM_CONF=FOLDER/slurm.conf. Partition low is preempted by partition high: SIGTERM,
# 20 s of grace, then the job is queued again.
set -euo pipefail
action=$1 folder=$2
host=$(hostname -s)

start() {
    mkdir -p "$folder"/{state,spool,munge,log}
    chmod 755 "$folder"
    chmod 700 "$folder/munge"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge/key" \
        --pid-file="$folder/munge/pid" --log-file="$folder/log/munge" \
        --seed-file="$folder/munge/seed"
    read -r _ memory < <(free -m | awk '/^Mem/ {print $1, $2}')
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$((memory / 2)) State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        if sinfo -h -o %t 2>/dev/null | grep -q idle; then
            return 0
        fi
        sleep 0.5
    done
    echo "the node is not idle: $(sinfo 2>&1)" >&2
    return 1
}

stop() {
    for pid in slurmd.pid slurmctld.pid munge/pid; do
        if [ -s "$folder/$pid" ]; then
            kill "$(cat "$folder/$pid")" 2>/dev/null || true
        fi
    done
}

"$action"
