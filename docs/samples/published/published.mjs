// Verifies one delivery with a published library, to show that consumers need no code from Stationmaster.
//
//   node published.mjs standardwebhooks|stripe < case.json
//
// The case is {"secret", "headers", "body_base64"}; "now" is ignored, because these libraries read
// the system's clock. The script looks for the libraries in STATIONMASTER_TEST_NODE_PATH
// (a node_modules directory) if it is set, otherwise beside this file.

import { createRequire } from "node:module";
import { join } from "node:path";

const modules = process.env.STATIONMASTER_TEST_NODE_PATH;
const require = createRequire(modules ? join(modules, "package.json") : import.meta.url);

const verifiers = {
  standardwebhooks(secret, headers, body) {
    const { Webhook } = require("standardwebhooks");
    new Webhook(secret).verify(body, headers);
  },
  stripe(secret, headers, body) {
    const Stripe = require("stripe");
    const stripe = new (Stripe.default ?? Stripe)("sk_test_unused");
    // Our header has the shape of theirs; only its name differs.
    stripe.webhooks.constructEvent(body, headers["x-stationmaster-signature"], secret);
  },
};

let text = "";
for await (const chunk of process.stdin) text += chunk;
const { secret, headers, body_base64 } = JSON.parse(text);
const lower = Object.fromEntries(
  Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]),
);
const verify = verifiers[process.argv[2]];
if (!verify) throw new Error("usage: published.mjs standardwebhooks|stripe");
try {
  verify(secret, lower, Buffer.from(body_base64, "base64"));
  console.log("ok");
} catch (error) {
  // A missing library is a fault of the set-up, not a refusal.
  if (error.code === "MODULE_NOT_FOUND") throw error;
  console.log(`refused: ${String(error.message).trim().split("\n")[0]}`);
  process.exitCode = 1;
}
