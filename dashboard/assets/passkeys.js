// Passkeys: the only thing on these pages that needs a script. Everything else works without one.
//
// A form with `data-passkey="create"` or `data-passkey="get"` is sent in two steps. Its fields go to
// `data-options`, which answers with the options of the ceremony as JSON, and with a text that has to
// come back. The authenticator's answer is put beside it, and the form is sent as any other form.

const bytesOf = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
const textOf = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

// By hand, for browsers that can't read the options from JSON (Safari before 18.4).
const listed = (list = []) => list.map((one) => ({ ...one, id: bytesOf(one.id) }));
const creationOf = (json) => PublicKeyCredential.parseCreationOptionsFromJSON?.(json) ?? {
  ...json,
  challenge: bytesOf(json.challenge),
  user: { ...json.user, id: bytesOf(json.user.id) },
  excludeCredentials: listed(json.excludeCredentials),
};
const requestOf = (json) => PublicKeyCredential.parseRequestOptionsFromJSON?.(json) ?? {
  ...json,
  challenge: bytesOf(json.challenge),
  allowCredentials: listed(json.allowCredentials),
};

const jsonOf = (credential) => {
  const { response } = credential;
  const answer = { clientDataJSON: textOf(response.clientDataJSON) };
  for (const name of ["attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (response[name]) answer[name] = textOf(response[name]);
  }
  if (response.getTransports) answer.transports = response.getTransports();
  return {
    id: credential.id,
    rawId: textOf(credential.rawId),
    type: credential.type,
    authenticatorAttachment: credential.authenticatorAttachment ?? undefined,
    clientExtensionResults: credential.getClientExtensionResults(),
    response: answer,
  };
};

const WORDS = {
  InvalidStateError: "This device already has a passkey for you here.",
  NotAllowedError: "No passkey was used: the request was cancelled, or it took too long.",
  NotSupportedError: "This device can't make a passkey that works here.",
  SecurityError: "This address can't use passkeys.",
};

const ceremony = async (form) => {
  const { passkey, options } = form.dataset;
  const fields = new URLSearchParams(new FormData(form));
  fields.delete("token");
  fields.delete("credential");
  const asked = await fetch(options, { method: "POST", body: fields, headers: { Accept: "application/json" } });
  if (!asked.ok) {
    const { code, detail } = await asked.json().catch(() => ({}));
    const confirm = `/confirm-it-is-you?return_to=${encodeURIComponent(location.pathname)}`;
    if (code === "recent_sign_in_required") location.assign(confirm);
    throw new Error(detail);
  }
  const { token, options: json } = await asked.json();
  form.elements.token.value = token;
  return passkey === "create"
    ? navigator.credentials.create({ publicKey: creationOf(json) })
    : navigator.credentials.get({ publicKey: requestOf(json) });
};

for (const form of window.PublicKeyCredential ? document.querySelectorAll("form[data-passkey]") : []) {
  const [button, status] = [form.querySelector("button"), form.querySelector("[role=alert]")];
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    status.textContent = "";
    try {
      form.elements.credential.value = JSON.stringify(jsonOf(await ceremony(form)));
      form.submit();
    } catch (error) {
      status.textContent = WORDS[error.name] || (error.name === "Error" && error.message)
        || "That did not work. Try again.";
    } finally {
      button.disabled = false;
    }
  });
}
