// A real browser (Debian's Chromium through npm `playwright-core`) that a test drives: it reads one
// command a line as JSON, and answers each with one line. It ends with its standard input.
//
// Every tab is a browser of its own, with its own cookies. What no page may do is noted as trouble:
// a violation of the page's policy, an error of a script, a request to another origin.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const require = createRequire(join(process.env.STATIONMASTER_TEST_NODE_PATH, "here.js"));
const { chromium } = require("playwright-core");
// A script tag would be blocked by the pages' policy; evaluated, it is not.
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const LIMIT_MS = 15_000;
const browser = await chromium.launch({
  executablePath: process.env.STATIONMASTER_TEST_CHROMIUM,
  args: ["--no-sandbox"],
});
const tabs = new Map();

const watch = (page, origin) => {
  const trouble = [];
  page.on("console", (message) => {
    if (/Content.Security.Policy/i.test(message.text())) trouble.push(message.text());
  });
  page.on("pageerror", (error) => trouble.push(`script: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol.startsWith("http") && url.origin !== origin) trouble.push(`request to ${url.origin}`);
  });
  return trouble;
};

const locate = ({ page }, { role, name, within }) => {
  const base = within ? page.locator(within) : page;
  return role === "label" ? base.getByLabel(name, { exact: true }) : base.getByRole(role, { name, exact: true });
};

// The page as a person reads it.
const shown = async ({ page, last }) => ({
  url: page.url(),
  title: await page.title(),
  status: last.status,
  text: await page.locator("body").innerText(),
});

const COMMANDS = {
  async tab(_, { tab, origin, width = 1280, height = 900, javascript = true, scheme = "light" }) {
    const context = await browser.newContext({
      viewport: { width, height },
      javaScriptEnabled: javascript,
      colorScheme: scheme,
      baseURL: origin,
    });
    context.setDefaultTimeout(LIMIT_MS);
    const page = await context.newPage();
    const last = { status: 0, headers: {} };
    page.on("response", (response) => {
      const request = response.request();
      if (!request.isNavigationRequest() || request.frame() !== page.mainFrame()) return;
      last.status = response.status();
      last.headers = response.headers();
    });
    tabs.set(tab, { context, page, last, trouble: watch(page, origin) });
    return {};
  },
  async open(tab, { path }) {
    await tab.page.goto(path);
    return shown(tab);
  },
  async fill(tab, { name, value }) {
    await locate(tab, { role: "label", name }).fill(value);
    return {};
  },
  async choose(tab, { name, value, within }) {
    const field = locate(tab, { role: "label", name, within });
    await (value === undefined ? field.check() : field.selectOption(value));
    return {};
  },
  // Presses a button or follows a link, and waits for the page that it leads to.
  async press(tab, { role = "button", name, within }) {
    const loaded = tab.page.waitForEvent("load");
    await Promise.all([loaded, locate(tab, { role, name, within }).click()]);
    return shown(tab);
  },
  // Presses a button that leads nowhere.
  async touch(tab, { role = "button", name }) {
    await locate(tab, { role, name }).click();
    return {};
  },
  async back(tab) {
    await tab.page.goBack();
    return shown(tab);
  },
  async reload(tab) {
    await tab.page.reload();
    return shown(tab);
  },
  async read(tab) {
    return shown(tab);
  },
  // Waits until the page says this.
  async see(tab, { text }) {
    await tab.page.getByText(text).first().waitFor();
    return shown(tab);
  },
  async source(tab) {
    return { source: await tab.page.content(), headers: tab.last.headers };
  },
  async cookies(tab) {
    return { cookies: await tab.context.cookies() };
  },
  // An authenticator in the device, with a person who agrees to everything.
  async authenticator(tab) {
    const client = await tab.context.newCDPSession(tab.page);
    await client.send("WebAuthn.enable");
    await client.send("WebAuthn.addVirtualAuthenticator", {
      options: {
        protocol: "ctap2",
        transport: "internal",
        hasResidentKey: true,
        hasUserVerification: true,
        isUserVerified: true,
        automaticPresenceSimulation: true,
      },
    });
    return {};
  },
  // Faults in access for people with disabilities, and whether the page is wider than the window.
  async judge(tab) {
    await tab.page.evaluate(axe);
    const { violations } = await tab.page.evaluate(() => axe.run());
    const wide = await tab.page.evaluate(
      () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
    );
    const words = ({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`);
    return { faults: violations.flatMap(words).concat(wide ? ["the page scrolls sideways"] : []) };
  },
  async picture(tab, { file }) {
    await tab.page.screenshot({ path: file, fullPage: true });
    return {};
  },
  async trouble(tab) {
    return { trouble: tab.trouble };
  },
};

console.log(JSON.stringify({ ready: browser.version() }));
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = await COMMANDS[command](tabs.get(rest.tab), rest);
  } catch (error) {
    const tab = tabs.get(rest.tab);
    const page = tab ? await shown(tab).catch(() => ({})) : {};
    answer = { error: `${error.message}\n${JSON.stringify(page)}` };
  }
  console.log(JSON.stringify(answer));
}
await browser.close();
process.exit(0);
