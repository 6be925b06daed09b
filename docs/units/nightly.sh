#!/bin/sh
# nightly.sh JOB.yaml [OPTION...]: run a job for cron, which mails whatever a command prints.
# Prints only what a person has to read; the run's own directory has all of it in run.log.
said=$(nanovllm run "$@" --progress none 2>&1)
code=$?
case $code in
  0 | 5) ;;                    # all is done; or the night is over, and the next one continues
  6) ;;                        # last night's run is still at work
  130 | 143) ;;                # stopped by somebody or by a shutdown; the next start continues
  *) printf '%s\n' "$said" ;;  # 1, 2, 3 and 4, or a kill: somebody has to look
esac
exit "$code"
