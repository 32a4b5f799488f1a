#!/bin/sh
# A Slurm job: submit it with  sbatch scripts/submit.sh [file or directory ...]  from the top of
# the tree. plua takes the number of workers from the job; told a minute ahead of the limit, it lets
# running items end, hands over what it has and leaves with status 75, for it may be run again.
# SPDX-License-Identifier: MIT
#SBATCH --job-name=identifiers
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=256M
#SBATCH --time=00:10:00
#SBATCH --signal=B:USR1@60
#SBATCH --output=identifiers-%j.out

# Slurm runs a copy of this file, so paths begin where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-.}" || exit
PATH=$PATH:$PWD/build

plua --cpus >&2 || exit
exec plua scripts/identifiers.lua "$@"
