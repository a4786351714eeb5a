// Verifies a Stationmaster delivery with Node's standard library alone. Copy what you need.
//
//   import { verifyDelivery } from "./verify.mjs";
//   verifyDelivery(secret, request.headers, rawBody); // throws Refused
//
// Give it the raw bytes of the body, before any JSON parser has touched them. Answer 4xx when
// it throws, and store `webhook-id` to detect repeats: retries and replays have the same id.

import { createHmac, timingSafeEqual } from "node:crypto";

const TOLERANCE_S = 300;

/** Why a delivery was refused: no_signature, malformed, too_old, too_new, no_match, bad_secret. */
export class Refused extends Error {}

/** Verifies every signature scheme that the delivery carries; at least one must be there. */
export function verifyDelivery(secret, headers, body, now = Math.floor(Date.now() / 1000)) {
  const lower = lowerCaseNames(headers);
  const first = "x-stationmaster-signature" in lower;
  const second = Object.keys(lower).some((name) => name.startsWith("webhook-"));
  if (!first && !second) throw new Refused("no_signature");
  if (first) verifyStationmaster(secret, lower, body, now);
  if (second) verifyStandardWebhooks(secret, lower, body, now);
}

/** `X-Stationmaster-Signature: t=<unix>,v1=<hex>`; the key is the secret's whole text. */
export function verifyStationmaster(secret, headers, body, now) {
  checkSecret(secret);
  const parts = (lowerCaseNames(headers)["x-stationmaster-signature"] ?? "").split(",");
  const valuesOf = (name) =>
    parts.filter((part) => part.startsWith(`${name}=`)).map((part) => part.slice(name.length + 1));
  const times = valuesOf("t");
  const signatures = valuesOf("v1");
  if (times.length !== 1 || signatures.length === 0) throw new Refused("malformed");
  checkAge(times[0], now);
  const expected = hmac(secret, `${times[0]}.`, body).toString("hex");
  checkAny(signatures, expected);
}

/** Standard Webhooks 1.0.0; the key is what the text after `whsec_` decodes to. */
export function verifyStandardWebhooks(secret, headers, body, now) {
  checkSecret(secret);
  const lower = lowerCaseNames(headers);
  const id = lower["webhook-id"];
  const time = lower["webhook-timestamp"];
  const signatures = (lower["webhook-signature"] ?? "")
    .split(" ")
    .filter((part) => part.startsWith("v1,"))
    .map((part) => part.slice(3));
  // The signed parts are joined by dots, so an id that contains a dot is refused.
  if (!id || id.includes(".") || !time || signatures.length === 0) throw new Refused("malformed");
  checkAge(time, now);
  const key = Buffer.from(secret.slice("whsec_".length), "base64");
  const expected = hmac(key, `${id}.${time}.`, body).toString("base64");
  checkAny(signatures, expected);
}

function hmac(key, prefix, body) {
  return createHmac("sha256", key).update(prefix).update(body).digest();
}

// One match is enough: while a secret rotates, the old and the new secret both sign.
function checkAny(signatures, expected) {
  const wanted = Buffer.from(expected);
  const matches = signatures.some((signature) => {
    const given = Buffer.from(signature);
    return given.length === wanted.length && timingSafeEqual(given, wanted);
  });
  if (!matches) throw new Refused("no_match");
}

function checkAge(time, now) {
  if (!/^[0-9]{1,12}$/.test(time)) throw new Refused("malformed");
  if (Number(time) < now - TOLERANCE_S) throw new Refused("too_old");
  if (Number(time) > now + TOLERANCE_S) throw new Refused("too_new");
}

/** The secret that signs calls of subcommands: verify those with this one. */
export function subcommandSecret(secret) {
  return `whsec_${hmac(secret, "stationmaster.subcommand.v1", "").toString("base64")}`;
}

// A secret has at least 24 bytes, which are 32 characters of base64.
function checkSecret(secret) {
  if (!/^whsec_[A-Za-z0-9+/]{32,}={0,2}$/.test(secret)) throw new Refused("bad_secret");
}

function lowerCaseNames(headers) {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
}

// For tests: reads {"secret", "headers", "body_base64", "now", "subcommand"} from standard input.
async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const { secret, headers, body_base64, now, subcommand } = JSON.parse(text);
  const key = subcommand ? subcommandSecret(secret) : secret;
  try {
    verifyDelivery(key, headers, Buffer.from(body_base64, "base64"), now ?? undefined);
    console.log("ok");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    console.log(`refused: ${error.message}`);
    process.exitCode = 1;
  }
}

if (process.argv[1] && import.meta.url === (await import("node:url")).pathToFileURL(process.argv[1]).href) {
  await main();
}
