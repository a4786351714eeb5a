#!/usr/bin/env bash
# A complete Stationmaster runner with bash, curl (7.84 or later) and jq.
#
#   STATIONMASTER_URL=https://… STATIONMASTER_TOKEN=stm_runner_… bash runner.sh COMMAND [ARGUMENTS…]
#
# COMMAND does the work: it reads the run as JSON on standard input and writes the output as JSON to
# standard output. Its standard error is the error message. Its exit codes: 0 success; 75 failure, and
# another attempt may succeed; any other: failure. JSON that it writes to the file $PROGRESS_FILE is
# reported as progress. On SIGTERM the runner sends SIGTERM to COMMAND, releases its run, and exits.
# COMMAND also gets SIGTERM when the run is cancelled or its lease is lost. STATIONMASTER_PIPELINES
# names pipelines, separated by commas.

set -uo pipefail
readonly URL=${STATIONMASTER_URL%/} WAIT_S=20 TRY_AGAIN=75
HOME_DIR=$(mktemp -d)
readonly HOME_DIR
# Only when the runner itself exits: a child that is killed while it starts can run this trap too.
trap '[[ $BASHPID != "$$" ]] || rm -rf "$HOME_DIR"' EXIT

# The token is in a file, because every user can read the arguments in the process list.
umask 077
printf 'Authorization: Bearer %s\n' "$STATIONMASTER_TOKEN" >"$HOME_DIR/token"

stopping=false waiting_for=''
stop() {
  stopping=true
  if [[ -n $waiting_for ]]; then kill "$waiting_for" 2>/dev/null; fi
}
trap stop TERM INT

# await PROCESS: waits for a started process and sets `code`. A signal to the runner ends it too.
await() {
  waiting_for=$1 code=0
  $stopping || wait "$1" || code=$?
  if $stopping; then
    # The signal interrupted `wait`. A process that was just starting may have missed the kill.
    while kill "$1" 2>/dev/null; do sleep 0.2; done
    local last=0
    wait "$1" 2>/dev/null || last=$?
    if ((last != 127)); then code=$last; fi
  fi
  waiting_for=''
}

# post PATH BODY SECONDS [CURL-ARGUMENTS…]: writes the answer to answer.json, prints status and date.
post() {
  ${EXEC:-} curl -sS --max-time "$3" -H @"$HOME_DIR/token" -H 'Content-Type: application/json' "${@:4}" \
    -d "$2" -o "$HOME_DIR/$ANSWER" -w '%{http_code} %header{date}\n' "$URL$1"
}

claim() {
  local body
  body=$(jq -cn --arg names "${STATIONMASTER_PIPELINES:-}" --argjson wait "$WAIT_S" \
    '{max: 1, wait_seconds: $wait} + if $names == "" then {} else {pipelines: ($names / ",")} end')
  # `exec` makes curl the process that is waited for, so ending that process closes the connection.
  EXEC=exec ANSWER=claim.json post /v1/runs/claim "$body" $((WAIT_S + 10)) >"$HOME_DIR/claim.status"
}

# keep WORKER: sends a heartbeat every third of the lease; ends the worker when the run is cancelled
# or its lease is lost.
keep() {
  local worker=$1 status body held_until=$((SECONDS + lease_s))
  while sleep "$(jq -n "$lease_s / 3")"; do
    body='{}'
    if [[ -s $HOME_DIR/progress ]]; then
      body=$(jq -c '{progress: .}' "$HOME_DIR/progress") || body='{}'
    fi
    status=$(ANSWER=beat.json post "/v1/runs/$id/heartbeat" "$body" "$((lease_s / 3 + 1))" \
      -H @"$HOME_DIR/claim")
    case $status in
    200*)
      held_until=$((SECONDS + lease_s))
      if [[ $(jq .cancel_requested "$HOME_DIR/beat.json") == true ]]; then
        touch "$HOME_DIR/cancelled"
        kill "$worker"
        return
      fi
      ;;
    409*) break ;;
    *) if ((SECONDS > held_until)); then break; fi ;;
    esac
  done
  touch "$HOME_DIR/lost"
  kill "$worker"
}

# finish VERB BODY: reports how the run ended. The idempotency key makes repeats harmless.
finish() {
  local end=$((SECONDS + lease_s)) status
  while true; do
    status=$(ANSWER=end.json post "/v1/runs/$id/$1" "$2" 30 -H @"$HOME_DIR/claim" \
      -H "Idempotency-Key: $1-$id-$attempt")
    case $status in
    000* | 429* | 5* | '') if ((SECONDS < end)); then sleep 1 && continue; fi ;;
    422*)
      if [[ $1 == complete ]]; then
        finish fail '{"error": {"message": "the output is not as promised"}}'
        return
      fi
      ;;
    esac
    printf '%s (attempt %s): %s\n' "$id" "$attempt" "$(jq -r .status "$HOME_DIR/end.json")"
    return
  done
}

# do_run COMMAND…: works on one run, from its claim to its end.
do_run() {
  local run=$HOME_DIR/run.json code worker keeper id attempt lease_s now until
  jq -c '.items[0]' "$HOME_DIR/claim.json" >"$run"
  id=$(jq -r .id "$run") attempt=$(jq -r .attempt "$run")
  jq -r '"X-Stationmaster-Claim: " + .claim.token' "$run" >"$HOME_DIR/claim"
  # The length of the lease, computed from the server's clock only.
  now=$(date -d "$(cut -d' ' -f2- "$HOME_DIR/claim.status")" +%s)
  until=$(date -d "$(jq -r .claim.expires_at "$run")" +%s)
  lease_s=$((until - now))
  rm -f "$HOME_DIR/lost" "$HOME_DIR/cancelled" "$HOME_DIR/progress"

  PROGRESS_FILE=$HOME_DIR/progress "$@" <"$run" >"$HOME_DIR/output" 2>"$HOME_DIR/error" &
  worker=$!
  keep "$worker" &
  keeper=$!
  await "$worker"
  { kill "$keeper" && wait "$keeper"; } 2>/dev/null

  local message output retryable=false
  if ((code == TRY_AGAIN)); then retryable=true; fi
  message=$(head -c 900 "$HOME_DIR/error")
  if [[ -e $HOME_DIR/lost ]]; then
    echo "$id (attempt $attempt): lost: somebody else has it, or nobody wants it"
  elif ((code == 0)) && output=$(jq -ce '{output: .}' "$HOME_DIR/output"); then
    finish complete "$output"
  elif ((code > 128)) && { $stopping || [[ -e $HOME_DIR/cancelled ]]; }; then
    finish release '{}'
  else
    finish fail "$(jq -cn --arg message "${message:-exit code $code}" \
      --argjson retryable "$retryable" '{error: {message: $message}, retryable: $retryable}')"
  fi
}

until $stopping; do
  claim &
  await $!
  read -r status _ <"$HOME_DIR/claim.status"
  case $status in
  200) if [[ $(jq '.items | length' "$HOME_DIR/claim.json") == 1 ]]; then do_run "$@"; fi ;;
  401 | 403)
    echo "the token is not good here" >&2
    exit 1
    ;;
  *) if ! $stopping; then sleep 1; fi ;;
  esac
done
