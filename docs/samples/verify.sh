#!/usr/bin/env bash
# Verifies a Stationmaster delivery with bash and openssl. Copy what you need.
#
#   source verify.sh
#   verify_stationmaster SECRET SIGNATURE_HEADER BODY_FILE                    || echo "refused: $reason"
#   verify_standard_webhooks SECRET ID TIMESTAMP SIGNATURE_HEADER BODY_FILE   || echo "refused: $reason"
#
# The body comes from a file that holds its raw bytes: a shell variable would lose NUL bytes and
# closing newlines. Store `webhook-id` to detect repeats: retries and replays have the same id.
#
# `reason` is one of no_signature, malformed, too_old, too_new, no_match, bad_secret.

readonly TOLERANCE_S=300

# `X-Stationmaster-Signature: t=<unix>,v1=<hex>`; the key is the secret's whole text.
verify_stationmaster() {
  local secret=$1 header=$2 body_file=$3 now=${4:-$(date +%s)}
  local part parts times=() signatures=()
  check_secret "$secret" || return 1
  IFS=, read -ra parts <<<"$header"
  for part in "${parts[@]}"; do
    case $part in
    t=*) times+=("${part#t=}") ;;
    v1=*) signatures+=("${part#v1=}") ;;
    esac
  done
  if ((${#times[@]} != 1 || ${#signatures[@]} == 0)); then
    refuse malformed || return 1
  fi
  check_age "${times[0]}" "$now" || return 1
  local expected
  expected=$({ printf '%s.' "${times[0]}" && cat "$body_file"; } |
    hmac_sha256 "$(printf '%s' "$secret" | to_hex)" | to_hex)
  check_any "$expected" "${signatures[@]}"
}

# Standard Webhooks 1.0.0; the key is what the text after `whsec_` decodes to.
verify_standard_webhooks() {
  local secret=$1 id=$2 time=$3 header=$4 body_file=$5 now=${6:-$(date +%s)}
  local part parts signatures=()
  check_secret "$secret" || return 1
  IFS=' ' read -ra parts <<<"$header"
  for part in "${parts[@]}"; do
    if [[ $part == v1,* ]]; then signatures+=("${part#v1,}"); fi
  done
  # The signed parts are joined by dots, so an id that contains a dot is refused.
  if [[ -z $id || $id == *.* || -z $time ]] || ((${#signatures[@]} == 0)); then
    refuse malformed || return 1
  fi
  check_age "$time" "$now" || return 1
  local expected
  expected=$({ printf '%s.%s.' "$id" "$time" && cat "$body_file"; } |
    hmac_sha256 "$(printf '%s' "${secret#whsec_}" | openssl base64 -d -A | to_hex)" |
    openssl base64 -A)
  check_any "$expected" "${signatures[@]}"
}

# hmac_sha256 KEY_IN_HEX: message on standard input, raw digest on standard output (RFC 2104).
# `openssl dgst -hmac` would show the secret in the process list, which every user can read.
hmac_sha256() {
  local key=$1 inner='' outer='' i
  if ((${#key} > 128)); then
    key=$(from_hex "$key" | openssl dgst -sha256 -binary | to_hex)
  fi
  while ((${#key} < 128)); do key+=0; done
  for ((i = 0; i < 128; i += 2)); do
    inner+=$(printf '%02x' $((16#${key:i:2} ^ 0x36)))
    outer+=$(printf '%02x' $((16#${key:i:2} ^ 0x5c)))
  done
  {
    from_hex "$outer"
    { from_hex "$inner" && cat; } | openssl dgst -sha256 -binary
  } | openssl dgst -sha256 -binary
}

to_hex() { od -An -tx1 -v | tr -d ' \n'; }

from_hex() {
  # shellcheck disable=SC2001 # replaces every pair of digits, not only the first
  printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"
}

# One match is enough: while a secret rotates, the old and the new secret both sign.
# bash stops comparing at the first difference, so the code compares salted hashes, not signatures.
check_any() {
  local expected=$1 salt signature
  shift
  salt=$(openssl rand -hex 32)
  for signature; do
    if [[ $(salted "$salt$signature") == "$(salted "$salt$expected")" ]]; then return 0; fi
  done
  refuse no_match
}

salted() { printf '%s' "$1" | openssl dgst -sha256 -r; }

check_age() {
  local time=$1 now=$2
  # 10# because a leading zero would mean octal.
  if [[ ! $time =~ ^[0-9]{1,12}$ ]]; then
    refuse malformed
  elif ((10#$time < now - TOLERANCE_S)); then
    refuse too_old
  elif ((10#$time > now + TOLERANCE_S)); then
    refuse too_new
  fi
}

# subcommand_secret SECRET: prints the secret that signs calls of subcommands.
subcommand_secret() {
  printf 'whsec_%s' "$(printf stationmaster.subcommand.v1 |
    hmac_sha256 "$(printf '%s' "$1" | to_hex)" | openssl base64 -A)"
}

# A secret has at least 24 bytes, which are 32 characters of base64.
check_secret() {
  [[ $1 =~ ^whsec_[A-Za-z0-9+/]{32,}={0,2}$ ]] || refuse bad_secret
}

refuse() {
  reason=$1
  return 1
}

# For tests: reads {"secret", "headers", "body_base64", "now", "subcommand"} from standard input (with jq).
# Verifies every scheme that the delivery carries; at least one must be there.
main() {
  set -euo pipefail
  local case secret now
  body=$(mktemp)
  trap 'rm -f "$body"' EXIT
  case=$(jq -c '.headers |= with_entries(.key |= ascii_downcase)')
  field() { jq -r "$1" <<<"$case"; }
  field .body_base64 | openssl base64 -d -A >"$body"
  secret=$(field .secret)
  if [[ $(field .subcommand) == true ]]; then secret=$(subcommand_secret "$secret"); fi
  now=$(field '.now // (now | floor)')

  reason=no_signature
  if [[ $(field '.headers | has("x-stationmaster-signature")') == true ]]; then
    reason=
    verify_stationmaster "$secret" "$(field '.headers["x-stationmaster-signature"]')" "$body" "$now" || true
  fi
  if [[ -z $reason || $reason == no_signature ]] &&
    [[ $(field '.headers | any(keys[]; startswith("webhook-"))') == true ]]; then
    reason=
    verify_standard_webhooks "$secret" "$(field '.headers["webhook-id"] // ""')" \
      "$(field '.headers["webhook-timestamp"] // ""')" \
      "$(field '.headers["webhook-signature"] // ""')" "$body" "$now" || true
  fi
  if [[ -n $reason ]]; then
    echo "refused: $reason"
    exit 1
  fi
  echo ok
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main; fi
