//! AI gateways: real proxies, with the configurations that docs/gateways ships, between clients
//! that hold a train token and an upstream that is to see an account's credential and nothing else.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tests::{Publisher, Server, User, World, keeping_client, on_both_stores, skip, tools};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
};

on_both_stores!(
    nginx_lends_a_credential_and_never_shows_it,
    caddy_lends_a_credential_and_never_shows_it,
    the_page_leads_from_an_api_key_to_a_gateway,
);

const API_KEY: &str = "sk-upstream-9f8e7d6c5b4a39281706f5e4d3c2b1a0";
const OTHER_KEY: &str = "sk-upstream-00112233445566778899aabbccddeeff";

/// What an upstream was asked: the head, in lower case.
type Heads = Arc<Mutex<Vec<String>>>;

/// An upstream that notes what it is asked. At `/stream` it sends one event, and another one once
/// it is told to.
struct Upstream {
    address: String,
    heads: Heads,
    go_on: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (heads, go_on) = (Heads::default(), Arc::new(Notify::new()));
        let (noted, told) = (Arc::clone(&heads), Arc::clone(&go_on));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&noted), Arc::clone(&told)));
            }
        });
        Self {
            address,
            heads,
            go_on,
            task,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The values of a header in the last request.
    fn last(&self, header: &str) -> Vec<String> {
        let head = self.heads().pop().unwrap();
        let lines = head.lines();
        let values = lines.filter_map(|line| line.strip_prefix(&format!("{header}: ")));
        values.map(str::to_owned).collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(stream: TcpStream, heads: Heads, go_on: Arc<Notify>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) if line == "\r\n" => break,
            Ok(_) => head.push_str(&line.to_lowercase().replace("\r\n", "\n")),
        }
    }
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |text| text.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    let streams = head.starts_with("get /stream");
    heads.lock().unwrap().push(head);
    let stream = stream.get_mut();
    if streams {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"b\r\ndata: one\n\n\r\n").await.unwrap();
        go_on.notified().await;
        let rest = b"b\r\ndata: two\n\n\r\n0\r\n\r\n";
        stream.write_all(rest).await.unwrap();
    } else {
        let text = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{\"ok\":true}";
        stream.write_all(text.as_bytes()).await.unwrap();
    }
    let _ = stream.shutdown().await;
}

/// A proxy that runs. Ended when dropped.
struct Gateway {
    url: String,
    _child: Child,
}

/// A configuration of docs/gateways, with the addresses of this test.
fn shipped(file: &str, server: &Server, upstream: &Upstream, listen: &str) -> String {
    let path = tools::root().join("docs/gateways").join(file);
    let mut text = std::fs::read_to_string(path).unwrap();
    let here = server.url().trim_start_matches("http://").to_owned();
    let changes = [
        ("127.0.0.1:8080", here),
        ("127.0.0.1:8088", listen.to_owned()),
        (
            "https://api.anthropic.com",
            format!("http://{}", upstream.address),
        ),
    ];
    for (from, to) in changes {
        assert!(text.contains(from), "{file} names no {from}");
        text = text.replace(from, &to);
    }
    text
}

/// Where a proxy is, by the variable that the test script sets.
fn program(variable: &str) -> Result<PathBuf, String> {
    let found = std::env::var_os(variable);
    found
        .map(PathBuf::from)
        .ok_or_else(|| format!("{variable} names no program"))
}

async fn started(mut command: Command, log: &Path, listen: &str) -> Gateway {
    let file = std::fs::File::create(log).unwrap();
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(log).unwrap_or_default();
    for _ in 0..3000 {
        if TcpStream::connect(listen).await.is_ok() {
            return Gateway {
                url: format!("http://{listen}"),
                _child: child,
            };
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the proxy does not listen: {}", said());
}

async fn nginx(program: PathBuf, server: &Server, upstream: &Upstream) -> Gateway {
    let home = server.site().home().join("nginx");
    std::fs::create_dir_all(&home).unwrap();
    let listen = tools::lasting_address();
    let here = home.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {here}/{kind};\n"))
        .concat();
    let shipped = shipped("nginx.conf", server, upstream, &listen);
    let config = format!(
        "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n    access_log off;\n{temporary}{shipped}}}\n"
    );
    let file = home.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(&home).arg("-c").arg(&file);
    started(command, &home.join("log"), &listen).await
}

async fn caddy(program: PathBuf, server: &Server, upstream: &Upstream) -> Gateway {
    let home = server.site().home().join("caddy");
    std::fs::create_dir_all(&home).unwrap();
    let listen = tools::lasting_address();
    let file = home.join("Caddyfile");
    std::fs::write(&file, shipped("Caddyfile", server, upstream, &listen)).unwrap();
    let mut command = Command::new(program);
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("HOME", &home)
        .env("XDG_DATA_HOME", &home)
        .env("XDG_CONFIG_HOME", &home);
    started(command, &home.join("log"), &listen).await
}

/// What a client got: status, `Retry-After`, body.
async fn ask(url: &str, headers: &[(&str, &str)]) -> (u16, Option<String>, String) {
    let mut request = keeping_client().post(url).body("{\"model\":\"m\"}");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let headers = format!("{:?}", answer.headers());
    let retry = answer.headers().get("retry-after");
    let retry = retry.map(|value| value.to_str().unwrap().to_owned());
    let body = answer.text().await.unwrap();
    for key in [API_KEY, OTHER_KEY] {
        assert!(!headers.contains(key) && !body.contains(key), "{status}");
    }
    (status, retry, body)
}

/// A train with one account that sends `x-api-key`; its token's text and identifier.
struct Line {
    admin: User,
    account: String,
    token: String,
    token_id: String,
}

async fn line(server: &Server, upstream: &Upstream) -> Line {
    let publisher = Publisher::create(&server.operator(), "acme").await;
    let admin = publisher.admin;
    let base_url = format!("http://{}", upstream.address);
    let account = json!({
        "name": "one", "provider": "anthropic", "base_url": base_url,
        "credential_type": "api_key", "api_key": API_KEY,
    });
    let account = admin.post("/v1/accounts").json(&account).expect(201).await;
    let account = account.text("/id");
    let train = json!({"slug": "chat"});
    admin.post("/v1/trains").json(&train).expect(201).await;
    let mapping = json!([{"account_id": account, "priority": 0}]);
    let call = admin.put("/v1/trains/chat/accounts").json(&mapping);
    call.expect(200).await;
    let call = admin
        .post("/v1/trains/chat/tokens")
        .json(&json!({"name": "laptop"}));
    let token = call.expect(201).await;
    Line {
        admin,
        account,
        token: token.text("/token"),
        token_id: token.text("/id"),
    }
}

/// Events reach the client one by one, as the upstream sends them.
async fn streams(gateway: &Gateway, upstream: &Upstream, bearer: &str) {
    let url = format!("{}/stream", gateway.url);
    let request = keeping_client().get(url).header("authorization", bearer);
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let first = answer.chunk().await.unwrap().unwrap();
    assert_eq!(first, "data: one\n\n");
    upstream.go_on.notify_one();
    let second = answer.chunk().await.unwrap().unwrap();
    assert_eq!(second, "data: two\n\n");
}

async fn story(server: &Server, upstream: &Upstream, gateway: &Gateway) {
    let Line {
        admin,
        account,
        token,
        token_id,
    } = line(server, upstream).await;
    let url = format!("{}/v1/messages", gateway.url);
    let bearer = format!("Bearer {token}");

    let (status, _, body) = ask(&url, &[("authorization", &bearer)]).await;
    assert_eq!((status, body.as_str()), (200, "{\"ok\":true}"));
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    assert_eq!(upstream.last("authorization"), Vec::<String>::new());
    // The form in which Anthropic's own clients send it.
    assert_eq!(ask(&url, &[("x-api-key", &token)]).await.0, 200);
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    streams(gateway, upstream, &bearer).await;
    for head in upstream.heads() {
        assert!(!head.contains(&token.to_lowercase()), "the token went on");
    }

    let passed = upstream.heads().len();
    assert_eq!(ask(&url, &[]).await.0, 401);
    assert_eq!(ask(&url, &[("authorization", "Bearer ptk_x")]).await.0, 401);
    // No account is left: the client is told when to come again.
    let report = json!({"account_id": account, "outcome": "rate_limited", "retry_after": 120});
    let client = admin.with_token(&token);
    client
        .post("/v1/resolve/report")
        .json(&report)
        .expect(204)
        .await;
    let (status, retry, _) = ask(&url, &[("authorization", &bearer)]).await;
    assert_eq!(status, 429);
    let seconds: u64 = retry.unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    let report = json!({"account_id": account, "outcome": "ok"});
    client
        .post("/v1/resolve/report")
        .json(&report)
        .expect(204)
        .await;
    assert_eq!(upstream.heads().len(), passed, "a refused request went on");
    assert_eq!(ask(&url, &[("authorization", &bearer)]).await.0, 200);

    // Another provider's header takes the first one's place.
    let other = json!({
        "name": "one", "provider": "openai", "base_url": format!("http://{}", upstream.address),
        "credential_type": "api_key", "api_key": OTHER_KEY,
    });
    let call = admin.post(&format!("/v1/accounts/{account}/replace"));
    call.json(&other).expect(201).await;
    assert_eq!(ask(&url, &[("x-api-key", &token)]).await.0, 200);
    assert_eq!(upstream.last("x-api-key"), Vec::<String>::new());
    assert_eq!(
        upstream.last("authorization"),
        [format!("bearer {OTHER_KEY}")]
    );

    let passed = upstream.heads().len();
    let path = format!("/v1/trains/chat/tokens/{token_id}");
    admin.delete(&path).expect(204).await;
    assert_eq!(ask(&url, &[("authorization", &bearer)]).await.0, 401);
    assert_eq!(
        upstream.heads().len(),
        passed,
        "a revoked token got through"
    );
}

async fn nginx_lends_a_credential_and_never_shows_it(world: &World) {
    match program("STATIONMASTER_TEST_NGINX") {
        Err(reason) => skip("nginx_lends_a_credential", &reason),
        Ok(program) => {
            let (server, upstream) = (world.start().await, Upstream::start().await);
            let gateway = nginx(program, &server, &upstream).await;
            story(&server, &upstream, &gateway).await;
        }
    }
}

async fn caddy_lends_a_credential_and_never_shows_it(world: &World) {
    match program("STATIONMASTER_TEST_CADDY") {
        Err(reason) => skip("caddy_lends_a_credential", &reason),
        Ok(program) => {
            let (server, upstream) = (world.start().await, Upstream::start().await);
            let gateway = caddy(program, &server, &upstream).await;
            story(&server, &upstream, &gateway).await;
        }
    }
}

/// The shell of docs/trains.md, from its first heading to the next, as one script.
fn page() -> String {
    let text = std::fs::read_to_string(tools::root().join("docs/trains.md")).unwrap();
    let (_, section) = text
        .split_once("## From an API key to a gateway\n")
        .unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("```sh\n").skip(1);
    let script: String = blocks
        .map(|block| block.split_once("```\n").unwrap().0)
        .collect();
    assert!(script.lines().count() > 20, "{script}");
    script
}

async fn the_page_leads_from_an_api_key_to_a_gateway(world: &World) {
    let program = match program("STATIONMASTER_TEST_NGINX") {
        Ok(program) => program,
        Err(reason) => return skip("the_page_leads_from_an_api_key", &reason),
    };
    let (server, upstream) = (world.start().await, Upstream::start().await);
    let publisher = server.publisher("acme").await;
    let listen = tools::lasting_address();
    let here = server.url().trim_start_matches("http://").to_owned();
    // Where the page is read: a place with docs/gateways below it, and nginx on the path.
    let home = server.site().home().join("reader");
    std::fs::create_dir_all(home.join("docs/gateways")).unwrap();
    std::fs::create_dir_all(home.join("bin")).unwrap();
    std::os::unix::fs::symlink(program, home.join("bin/nginx")).unwrap();
    let config = shipped("nginx.conf", &server, &upstream, &listen);
    std::fs::write(home.join("docs/gateways/nginx.conf"), config).unwrap();
    let script = page()
        .replace("127.0.0.1:8080", &here)
        .replace("127.0.0.1:8088", &listen);
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(&home)
        .env("PATH", format!("{}:{path}", home.join("bin").display()))
        .env("ADMIN", publisher.admin.token())
        .env("ANTHROPIC_API_KEY", API_KEY)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let limit = Duration::from_mins(1);
    let done = tokio::time::timeout(limit, command.output()).await;
    let done = done.expect("the page takes too long").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{out}\n{err}");
    assert!(out.ends_with("{\"ok\":true}401\n"), "{out}\n{err}");
    assert!(!format!("{out}{err}").contains(API_KEY), "{out}\n{err}");
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    assert_eq!(upstream.heads().len(), 1);
}
