// Verifies a Stationmaster delivery that is signed with an Ed25519 key pair (Standard Webhooks,
// `v1a`),
// with Node's standard library alone. Copy what you need.
//
//   import { verifyDelivery } from "./verify-ed25519.mjs";
//   verifyDelivery(publicKeys, request.headers, rawBody); // throws Refused
//
// `publicKeys` are the texts `whpk_…` that the endpoint's `public_keys` lists. Fetch them again
// when none of your keys fits: a rotation changes them.

import { createPublicKey, verify } from "node:crypto";

const TOLERANCE_S = 300;
// The DER prefix of a public key, before its 32 bytes (RFC 8410 §4).
const DER = Buffer.from("302a300506032b6570032100", "hex");

/** Why a delivery was refused: malformed, too_old, too_new, no_match or bad_key. */
export class Refused extends Error {}

/** Verifies `webhook-signature`; any of the keys and any of the signatures may fit. */
export function verifyDelivery(publicKeys, headers, body, now = Math.floor(Date.now() / 1000)) {
  const lower = Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
  );
  const id = lower["webhook-id"];
  const time = lower["webhook-timestamp"];
  const signatures = (lower["webhook-signature"] ?? "")
    .split(" ")
    .filter((part) => part.startsWith("v1a,"))
    .map((part) => Buffer.from(part.slice(4), "base64"));
  if (!id || !/^[0-9]{1,12}$/.test(time ?? "") || signatures.length === 0) {
    throw new Refused("malformed");
  }
  if (Number(time) < now - TOLERANCE_S) throw new Refused("too_old");
  if (Number(time) > now + TOLERANCE_S) throw new Refused("too_new");
  const signed = Buffer.concat([Buffer.from(`${id}.${time}.`), body]);
  const keys = publicKeys.map(keyOf);
  const fits = (key) => signatures.some((signature) => verify(null, signed, key, signature));
  if (!keys.some(fits)) throw new Refused("no_match");
}

function keyOf(text) {
  const bytes = Buffer.from(text.startsWith("whpk_") ? text.slice(5) : "", "base64");
  if (bytes.length !== 32) throw new Refused("bad_key");
  return createPublicKey({ key: Buffer.concat([DER, bytes]), format: "der", type: "spki" });
}

// For tests: reads {"public_keys", "headers", "body_base64", "now"} from standard input.
if (process.argv[1] === new URL(import.meta.url).pathname) {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const test = JSON.parse(Buffer.concat(chunks).toString());
  try {
    verifyDelivery(test.public_keys, test.headers, Buffer.from(test.body_base64, "base64"), test.now);
    console.log("ok");
  } catch (reason) {
    if (!(reason instanceof Refused)) throw reason;
    console.log(`refused: ${reason.message}`);
    process.exitCode = 1;
  }
}
