#!/bin/bash
# The array, and behind it the step that needs all slides: training, prediction, heatmaps, report.
#
#   SLIDES=/data/slides JOB=/data/job LABELS=/data/labels.csv PARTS=20 bash submit.sh
set -euo pipefail
: "${SLIDES:?folder of slides or CSV manifest}" "${JOB:?job folder}" "${LABELS:?CSV with slide_id, label, case_id}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export SLIDES JOB
array=$(sbatch --parsable --array="0-$((${PARTS:-20} - 1))" "$here/array.sbatch")
sbatch --dependency="afterany:${array%%;*}" --job-name=slidemil-model --cpus-per-task=8 --mem=32G --time=08:00:00 \
    --wrap "slidemil run '$SLIDES' -o '$JOB' -l '$LABELS' ${MORE:-}"
