#!/bin/bash
# Joins the shards of slurm-array.sh; ends in the exit code that one run of all rows would have had.
#SBATCH --job-name=articles-merge
#SBATCH --ntasks=1
#SBATCH --mem=2G
#SBATCH --time=00:30:00
#SBATCH --output=articles-merge.log

exec nanovllm merge runs/articles runs/articles-{0..7}-of-8
