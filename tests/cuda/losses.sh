#!/usr/bin/env bash
# losses.sh prepare DIR    where DIR/nanochat is and this checkout: makes vocabulary, data and
#                          configuration of a small training in DIR/losses
# losses.sh run [ARGS]     in DIR, on the machine with the GPU: trains twice from one seed, on
#                          the processor and on the GPU, and compares. ARGS go to nanochat train.
# losses.sh compare A B    compares two metrics.jsonl, step by step
#
# LIMIT is the most that two losses may differ by, in nats (0.01). Nothing but a shell and awk
# is needed there.
set -euo pipefail
limit=${LIMIT:-0.01}

compare() {
	awk -v limit="$limit" '
	# number is the value of a key in a line of metrics, "" if it is not there.
	function number(line, key) {
		if (!match(line, "\"" key "\":[^,}]*")) return ""
		return substr(line, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
	}
	BEGIN { most = -1 }
	{
		step = number($0, "step"); loss = number($0, "loss"); nats = number($0, "nats")
		if (FNR == NR) { first[step] = loss; value[step] = nats; n++; next }
		m++
		if (!(step in first)) { print "step " step " is only in the second"; bad = 1; next }
		d = loss - first[step]; if (d < 0) d = -d
		if (loss == "null" || first[step] == "null" || loss == "") { print "step " step ": losses " first[step] " and " loss; bad = 1; next }
		if (d > most) { most = d; at = step }
		total += d
		if (d > limit) { print "step " step ": losses " first[step] " and " loss " differ by " d; bad = 1 }
		if (nats != "" || value[step] != "") {
			v = nats - value[step]; if (v < 0) v = -v
			printf "step %d: validation %s and %s nats, difference %.6f\n", step, value[step], nats, v
			if (nats == "" || value[step] == "" || v > limit) bad = 1
		}
	}
	END {
		if (n != m || n == 0) { print n + 0 " and " m + 0 " steps"; bad = 1 }
		if (most >= 0) printf "%d steps: losses differ by %.6f at most (step %d), %.6f on average; limit %s\n", m, most, at, total / m, limit
		exit bad
	}' "$1" "$2"
}

case ${1:-} in
prepare)
	out=$2/losses
	mkdir -p "$out"
	sources=(core kernels cmd)
	"$2/nanochat" tokenizer train docs/*.md core/*/*.go --vocab 1024 -o "$out/tokenizer.json" --force
	"$2/nanochat" data prepare "${sources[@]}" --extension .go --val docs --extension .md --min-letters 0 --tokenizer "$out/tokenizer.json" -o "$out/data" --force
	cp "$(dirname "$0")/losses.toml" "$out"
	;;
run)
	shift
	cd losses
	rm -rf cpu cuda
	for device in cpu cuda; do
		../nanochat train losses.toml --device $device --out $device --tensorboard off --resume none "$@"
	done
	compare cpu/metrics.jsonl cuda/metrics.jsonl
	;;
compare) compare "$2" "$3" ;;
*)
	sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
