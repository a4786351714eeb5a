// A certified OpenID provider (npm `oidc-provider`) on a free port of this machine, for the tests.
// Everybody who comes is logged in as one person and consents. Its first line says where it listens.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const home = process.env.STATIONMASTER_TEST_NODE_PATH;
const require = createRequire(join(home, "here.js"));
const { Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

// argv: access tokens' life in seconds, redirect URI of the clients (its port does not count).
const [life, redirectUri] = process.argv.slice(2);

const client = (id, method, secret) => ({
  client_id: id,
  application_type: "native",
  token_endpoint_auth_method: method,
  grant_types: ["authorization_code", "refresh_token"],
  response_types: ["code"],
  redirect_uris: [redirectUri],
  ...(secret && { client_secret: secret }),
});

const server = createServer();
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      client("public", "none"),
      client("basic", "client_secret_basic", "basic-secret-of-the-tests"),
      client("post", "client_secret_post", "post-secret/of+the=tests"),
    ],
    features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
    pkce: { required: () => true },
    scopes: ["openid", "offline_access"],
    ttl: { AccessToken: Number(life), RefreshToken: 86400, Grant: 86400, Session: 86400, Interaction: 600 },
    // A refresh token that comes twice ends its whole grant.
    rotateRefreshToken: true,
    issueRefreshToken: async () => true,
    findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    cookies: { keys: ["only for tests"] },
  });
  const answer = provider.callback();
  const interact = async (request, response) => {
    const { prompt, params, session } = await provider.interactionDetails(request, response);
    if (prompt.name === "login") {
      const result = { login: { accountId: "person" } };
      return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
    }
    const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    const result = { consent: { grantId: await grant.save() } };
    return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
  };
  server.on("request", (request, response) => {
    if (!request.url.startsWith("/interaction/")) return answer(request, response);
    interact(request, response).catch((error) => {
      response.statusCode = 500;
      response.end(String(error));
    });
  });
  console.log(`listening on ${issuer}`);
});
// Ends with whoever started it.
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
