//! `stationmaster accounts …`, with a certified `OpenID` provider as the upstream.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::json;
use tests::{Publisher, Server, World, keeping_client, new_account, on_both_stores, skip, tools};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use url::Url;

use crate::{resolving::resolve, verifiers::node_path};

use super::{BY_HAND, HOUR, hold, lent_token};

on_both_stores!(
    people_log_in_and_accounts_are_refreshed,
    a_login_that_is_denied_is_said,
    what_can_not_be_done_is_said_with_an_exit_code,
);

const LIMIT: Duration = Duration::from_secs(30);
const SCOPES: &str = "openid offline_access";

/// The provider. It ends with its standard input.
pub struct Provider {
    /// Its issuer.
    pub url: String,
    _child: Child,
}

impl Provider {
    /// Starts it for a test; `None` if it is not installed.
    pub async fn start(test: &str) -> Option<Self> {
        let home = node_path();
        if !home.join("oidc-provider").is_dir() {
            let what = format!(
                "{} has no oidc-provider; scripts/test installs it",
                home.display()
            );
            skip(test, &what);
            return None;
        }
        let program: PathBuf = tools::root().join("tests/programs/oidc-provider.mjs");
        let mut child = Command::new("node")
            .arg(program)
            .args(["3600", "http://127.0.0.1/callback"])
            .env("STATIONMASTER_TEST_NODE_PATH", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let line = line.unwrap().unwrap().expect("the provider starts");
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        Some(Self { url, _child: child })
    }
}

fn command(server: &Server, publisher: &Publisher, arguments: &[&str]) -> Command {
    let mut command = server.site().command(&[]);
    command
        .arg("accounts")
        .args(arguments)
        .args(["--server", &server.url()])
        .env("STATIONMASTER_TOKEN", publisher.admin.token());
    command
}

/// Runs it to its end; exit code, standard output and standard error.
async fn run(server: &Server, publisher: &Publisher, arguments: &[&str]) -> (i32, String, String) {
    let output: Output = command(server, publisher, arguments)
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    assert_eq!(server.site().found_in(&all), Vec::<String>::new());
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A login that was begun: the process, and the address that it shows.
struct Login {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl Login {
    async fn begin(mut command: Command) -> Self {
        let spawned = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = String::new();
        while !address.starts_with("http") {
            let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
            address = line.unwrap().unwrap().expect("an address is shown");
        }
        Self {
            child,
            lines,
            address,
        }
    }

    /// Its exit code and all that it still had to say.
    async fn end(mut self) -> (i32, String) {
        let mut said = String::new();
        while let Some(line) = self.lines.next_line().await.unwrap() {
            said.push_str(&line);
        }
        let ended = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await;
        let output = ended.unwrap().unwrap();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), said)
    }
}

/// Goes where a browser would: follows redirects with the cookies that it was given. Answers the
/// last page.
pub async fn browse(address: &str) -> String {
    let client = keeping_client();
    let mut cookies: BTreeMap<String, String> = BTreeMap::new();
    let mut url = Url::parse(address).unwrap();
    for _ in 0..12 {
        let jar: Vec<String> = cookies.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let answer = client
            .get(url.clone())
            .header(COOKIE, jar.join("; "))
            .send();
        let answer = answer.await.unwrap();
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            cookies.insert(name.to_owned(), value.to_owned());
        }
        match answer.headers().get(LOCATION) {
            Some(next) => url = url.join(next.to_str().unwrap()).unwrap(),
            None => return answer.text().await.unwrap(),
        }
    }
    panic!("there is no end to the redirects of {address}");
}

#[expect(clippy::too_many_lines, reason = "one story from the login to the end")]
async fn people_log_in_and_accounts_are_refreshed(world: &World) {
    let Some(provider) = Provider::start("oauth::cli").await else {
        return;
    };
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let (authorize, token) = (
        format!("{}/auth?prompt=consent", provider.url),
        format!("{}/token", provider.url),
    );
    // Those that have a secret show it in the way that the provider wants.
    for (client, secret) in [
        ("public", None),
        ("basic", Some("basic-secret-of-the-tests")),
        ("post", Some("post-secret/of+the=tests")),
    ] {
        let mut arguments = vec![
            "login",
            client,
            "--provider",
            "acme",
            "--base-url",
            "https://api.example.com",
            "--authorize-url",
            &authorize,
            "--token-url",
            &token,
            "--client-id",
            client,
            "--scopes",
            SCOPES,
        ];
        if secret.is_some() {
            arguments.extend(["--client-secret-env", "UPSTREAM_SECRET"]);
        }
        let mut command = command(&server, &publisher, &arguments);
        if let Some(secret) = secret {
            server.site().remember(secret);
            command.env("UPSTREAM_SECRET", secret);
        }
        let login = Login::begin(command).await;
        let page = browse(&login.address).await;
        assert!(page.contains("You are logged in"), "{page}");
        let (code, said) = login.end().await;
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains(&format!("account {client} is acc_")),
            "{said}"
        );
    }

    let id = publisher.admin.all("/v1/accounts").await[0]["id"].clone();
    let id = id.as_str().unwrap();
    publisher.train("chat", &[id]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let mut tokens = vec![lent_token(&resolve(&gateway, &json!({})).await)];
    server.site().remember(&tokens[0]);
    for name in ["public", "basic", "post", id] {
        let (code, said, wrong) = run(&server, &publisher, &["refresh", name]).await;
        assert_eq!(code, 0, "{name}: {wrong}");
        assert!(
            said.contains("was refreshed; its token lives until 20"),
            "{said}"
        );
    }
    tokens.push(lent_token(&resolve(&gateway, &json!({})).await));
    assert_ne!(tokens[0], tokens[1]);
    server.site().remember(&tokens[1]);

    let (code, planned, _) = run(&server, &publisher, &["refresh-all", "--dry-run"]).await;
    assert_eq!(
        (code, planned.matches("would_refresh").count()),
        (0, 3),
        "{planned}"
    );
    assert_eq!(lent_token(&resolve(&gateway, &json!({})).await), tokens[1]);
    let (code, done, _) = run(&server, &publisher, &["refresh-all"]).await;
    assert_eq!((code, done.matches(" refreshed").count()), (0, 3), "{done}");
    assert_ne!(lent_token(&resolve(&gateway, &json!({})).await), tokens[1]);
    let (code, shown, _) = run(&server, &publisher, &["status"]).await;
    assert_eq!((code, shown.lines().count()), (0, 4), "{shown}");
    assert!(shown.starts_with("NAME"), "{shown}");
    let (_, one, _) = run(&server, &publisher, &["status", "basic"]).await;
    assert_eq!(one.lines().count(), 2, "{one}");
    assert!(one.contains("oauth") && one.contains(" ok "), "{one}");
    let resting = resolve(&gateway, &json!({})).await.text("/account_id");
    crate::resolving::report(&gateway, &resting, "rate_limited", json!({})).await;
    let (_, shown, _) = run(&server, &publisher, &["status", &resting]).await;
    assert!(shown.contains(" ok, cools down until 20"), "{shown}");
}

async fn a_login_that_is_denied_is_said(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let arguments = [
        "login",
        "mine",
        "--provider",
        "acme",
        "--base-url",
        "https://api.example.com",
        "--authorize-url",
        "https://id.example.com/auth",
        "--token-url",
        "https://id.example.com/token",
        "--client-id",
        "x",
    ];
    let login = Login::begin(command(&server, &publisher, &arguments)).await;
    let shown = Url::parse(&login.address).unwrap();
    let asked: BTreeMap<String, String> = shown.query_pairs().into_owned().collect();
    let back = |query: &str| format!("{}?{query}", asked["redirect_uri"]);
    // Whoever does not know the state is nobody.
    let page = browse(&back("code=good&state=guessed")).await;
    assert!(page.contains("Nothing is here"), "{page}");
    let denied = back(&format!("error=access_denied&state={}", asked["state"]));
    let page = browse(&denied).await;
    assert!(page.contains("The login failed"), "{page}");
    let (code, said) = login.end().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("refused the login: access_denied"), "{said}");
    assert_eq!(publisher.admin.all("/v1/accounts").await.len(), 0);
}

async fn what_can_not_be_done_is_said_with_an_exit_code(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = tests::TokenEndpoint::start(&server).await;
    hold(&publisher, &endpoint.account("one", HOUR)).await;
    hold(&publisher, &new_account("key")).await;
    endpoint.answer_with(tests::AnswerMode::Saying(503, String::new()));
    let expect = async |arguments: &[&str], code: i32, words: &str| {
        let (found, said, wrong) = run(&server, &publisher, arguments).await;
        assert_eq!(found, code, "{arguments:?}: {said}{wrong}");
        assert!(wrong.contains(words), "{arguments:?}: {wrong}");
        said
    };
    expect(&["refresh", "none"], 1, "there is no account \"none\"").await;
    expect(&["refresh", &tools::absent("acc")], 1, "not_found").await;
    expect(&["refresh", "key"], 1, "wrong_credential_type").await;
    expect(&["refresh", "one"], 1, "refresh_failed").await;
    let said = expect(&["refresh-all"], 1, "1 accounts could not be refreshed").await;
    assert!(said.contains("failed   unavailable"), "{said}");
    let body = json!({"error": "invalid_grant"}).to_string();
    endpoint.answer_with(tests::AnswerMode::Saying(400, body));
    expect(&["refresh", "one"], 1, "refresh_failed").await;
    let said = expect(&["status", "one"], 0, "").await;
    let health = "failed (invalid_grant), lent until 20";
    assert!(said.contains(health), "{said}");
    expect(&["status", "--token-env", "NOT_SET"], 2, "NOT_SET").await;
    let runner = Publisher {
        admin: publisher.runner.clone(),
        ..publisher.clone()
    };
    let (code, _, wrong) = run(&server, &runner, &["status"]).await;
    assert!(code == 1 && wrong.contains("wrong_token_kind"), "{wrong}");
}
