//! What the stories of gateways share: proxies as docs/gateways ships them, an upstream, a train.

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tests::{Server, User, World, keeping_client, skip, tools};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
};

pub const API_KEY: &str = "sk-upstream-9f8e7d6c5b4a39281706f5e4d3c2b1a0";
pub const OTHER_KEY: &str = "sk-upstream-00112233445566778899aabbccddeeff";

/// What an upstream makes of requests.
#[derive(Default)]
struct Manners {
    /// The heads of what it was asked, in lower case, each with the length of its body.
    heads: Mutex<Vec<String>>,
    /// The status and more headers for requests with a credential.
    refused: Mutex<HashMap<String, (u16, String)>>,
    /// Whether it answers like a provider of models.
    speaks: AtomicBool,
    go_on: Notify,
}

/// An upstream that notes what it is asked. At `/stream` it sends one event, and another one once
/// it is told to.
pub struct Upstream {
    pub address: String,
    manners: Arc<Manners>,
    task: JoinHandle<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0").await.unwrap()
    }

    pub async fn at(address: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?.to_string();
        let manners = Arc::new(Manners::default());
        let shared = Arc::clone(&manners);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            manners,
            task,
        })
    }

    pub fn heads(&self) -> Vec<String> {
        self.manners.heads.lock().unwrap().clone()
    }

    /// Lets the stream go on.
    pub fn go_on(&self) {
        self.manners.go_on.notify_one();
    }

    /// From now on it answers like a provider of models.
    pub fn speak(&self) {
        self.manners.speaks.store(true, Ordering::SeqCst);
    }

    /// From now on it answers requests with this credential so.
    pub fn refuse(&self, key: &str, status: u16, headers: &str) {
        let mut refused = self.manners.refused.lock().unwrap();
        refused.insert(key.to_owned(), (status, headers.to_owned()));
    }

    /// From now on it takes every credential.
    pub fn take_all(&self) {
        self.manners.refused.lock().unwrap().clear();
    }

    /// The values of a header in each request.
    pub fn all(&self, header: &str) -> Vec<Vec<String>> {
        let prefix = format!("{header}: ");
        let values = |head: &String| {
            let values = head.lines().filter_map(|line| line.strip_prefix(&prefix));
            values.map(str::to_owned).collect()
        };
        self.heads().iter().map(values).collect()
    }

    /// The values of a header in the last request.
    pub fn last(&self, header: &str) -> Vec<String> {
        self.all(header).pop().unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(stream: TcpStream, manners: Arc<Manners>) {
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
    writeln!(head, "body-bytes: {}", body.len()).unwrap();
    let streams = head.starts_with("get /stream");
    let answer = answer_to(&head, &manners);
    manners.heads.lock().unwrap().push(head);
    let stream = stream.get_mut();
    if streams {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"b\r\ndata: one\n\n\r\n").await.unwrap();
        manners.go_on.notified().await;
        let rest = b"b\r\ndata: two\n\n\r\n0\r\n\r\n";
        stream.write_all(rest).await.unwrap();
    } else {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    let _ = stream.shutdown().await;
}

/// Any answer but a stream.
fn answer_to(head: &str, manners: &Manners) -> String {
    let refused = manners.refused.lock().unwrap();
    let refused = refused.iter().find(|(key, _)| head.contains(key.as_str()));
    let (status, more, body) = match refused {
        Some((_, (status, more))) => {
            let error = json!({"type": "error", "error": {"type": "refused", "message": "no"}});
            (*status, more.as_str(), error)
        }
        None if manners.speaks.load(Ordering::SeqCst) => (200, "", words(head)),
        None => (200, "", json!({"ok": true})),
    };
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} Status\r\n{more}content-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What a model says, in the form of its provider.
fn words(head: &str) -> Value {
    let words = "hello from the upstream";
    if head.contains("/chat/completions") {
        json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{
                "index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": words},
            }],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        })
    } else {
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": words}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        })
    }
}

/// A proxy that runs. Ended when dropped.
pub struct Gateway {
    pub url: String,
    log: PathBuf,
    _child: Child,
}

impl Gateway {
    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The proxies that docs/gateways has a file for, of those that the tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Caddy,
    Envoy,
}

/// Where a proxy is, by the variable that the test script sets.
pub fn program(variable: &str) -> Result<PathBuf, String> {
    let found = std::env::var_os(variable);
    found
        .map(PathBuf::from)
        .ok_or_else(|| format!("{variable} names no program"))
}

impl Proxy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nginx, Self::Caddy, Self::Envoy];

    /// Its program; a skip of the test if there is none.
    fn program(self, test: &str) -> Option<PathBuf> {
        let found = match self {
            Self::Nginx => program("STATIONMASTER_TEST_NGINX"),
            Self::Caddy => program("STATIONMASTER_TEST_CADDY"),
            Self::Envoy => envoy_program(),
        };
        found.map_err(|reason| skip(test, &reason)).ok()
    }

    /// A configuration of docs/gateways, with these addresses in place of its own.
    pub fn config(self, server: &Server, upstream: &Upstream, listen: &str) -> String {
        let here = server.url().trim_start_matches("http://").to_owned();
        let (url, port) = (format!("http://{}", upstream.address), port(listen));
        let known = [("127.0.0.1:8080", here), ("https://api.anthropic.com", url)];
        match self {
            Self::Nginx => {
                let place = ("listen 127.0.0.1:8088;", format!("listen {listen};"));
                changed("nginx.conf", &[&known[..], &[place]].concat())
            }
            Self::Caddy => {
                let names = "http://127.0.0.1:8088, http://:8088 {";
                let place = (names, format!("http://127.0.0.1:{port}, http://:{port} {{"));
                changed("Caddyfile", &[&known[..], &[place]].concat())
            }
            Self::Envoy => envoy_config(server, upstream, listen),
        }
    }

    /// Runs it with a configuration made of the shipped one.
    pub async fn start(
        self,
        test: &str,
        server: &Server,
        upstream: &Upstream,
        change: impl FnOnce(String) -> String,
    ) -> Option<Gateway> {
        let program = self.program(test)?;
        let listen = tools::lasting_address();
        let config = change(self.config(server, upstream, &listen));
        let home = server
            .site()
            .home()
            .join(format!("{self:?}-{}", tools::word()));
        std::fs::create_dir_all(&home).unwrap();
        let command = match self {
            Self::Nginx => nginx(&program, &home, &config),
            Self::Caddy => caddy(&program, &home, &config),
            Self::Envoy => envoy(&program, &home, &config),
        };
        Some(started(command, home.join("log"), &listen).await)
    }

    /// A server, an upstream, and the proxy between them.
    pub async fn house(self, test: &str, world: &World) -> Option<(Server, Upstream, Gateway)> {
        self.program(test)?;
        let (server, upstream) = (world.start().await, Upstream::start().await);
        let gateway = self.start(test, &server, &upstream, |text| text).await?;
        Some((server, upstream, gateway))
    }
}

/// A file of docs/gateways with other words in place of these, all of which it has.
fn changed(file: &str, changes: &[(&str, String)]) -> String {
    let path = tools::root().join("docs/gateways").join(file);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{file} names no {from}");
        text = text.replace(from, to);
    }
    text
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').unwrap().1
}

/// The test script installs it beside Python.
fn envoy_program() -> Result<PathBuf, String> {
    let path = tools::python().with_file_name("envoy");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!(
            "{} is missing; scripts/test installs it",
            path.display()
        ))
    }
}

/// Without TLS, which comes last in the file: the upstream of the tests has none.
fn envoy_config(server: &Server, upstream: &Upstream, listen: &str) -> String {
    let at = |address: &str| format!("address: 127.0.0.1, port_value: {}", port(address));
    let url = server.url();
    let name = "host_rewrite_literal: api.anthropic.com";
    let text = changed(
        "envoy.yaml",
        &[
            ("http://127.0.0.1:8080", url.clone()),
            ("address: 127.0.0.1, port_value: 8080", at(&url)),
            ("address: 127.0.0.1, port_value: 8088", at(listen)),
            (
                "address: api.anthropic.com, port_value: 443",
                at(&upstream.address),
            ),
            (name, format!("host_rewrite_literal: {}", upstream.address)),
        ],
    );
    let (plain, _) = text.split_once("      # TLS,").unwrap();
    plain.to_owned()
}

async fn started(mut command: Command, log: PathBuf, listen: &str) -> Gateway {
    let file = std::fs::File::create(&log).unwrap();
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let gateway = Gateway {
        url: format!("http://{listen}"),
        log,
        _child: child,
    };
    for _ in 0..3000 {
        if TcpStream::connect(listen).await.is_ok() {
            return gateway;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the proxy does not listen: {}", gateway.log());
}

fn nginx(program: &Path, home: &Path, shipped: &str) -> Command {
    let here = home.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {here}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n    access_log off;\n{temporary}{shipped}}}\n"
    );
    let file = home.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(home).arg("-c").arg(&file);
    command
}

fn caddy(program: &Path, home: &Path, shipped: &str) -> Command {
    let file = home.join("Caddyfile");
    std::fs::write(&file, shipped).unwrap();
    let mut command = Command::new(program);
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("HOME", home)
        .env("XDG_DATA_HOME", home)
        .env("XDG_CONFIG_HOME", home);
    command
}

fn envoy(program: &Path, home: &Path, shipped: &str) -> Command {
    let file = home.join("envoy.yaml");
    std::fs::write(&file, shipped).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&file);
    // Others may run beside it.
    command.args([
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
        "-l",
        "warning",
    ]);
    command
}

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub retry_after: Option<String>,
    pub content_type: Option<String>,
    pub body: String,
}

impl Got {
    /// The body as a problem.
    pub fn problem(&self) -> Value {
        let of_problem = Some("application/problem+json");
        assert_eq!(self.content_type.as_deref(), of_problem, "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status, "{self:?}");
        problem
    }
}

/// A POST of a small body.
pub async fn ask(url: &str, headers: &[(&str, &str)]) -> Got {
    send(url, headers, "{\"model\":\"m\"}".into()).await
}

/// A POST. Nothing in its answer is a credential.
pub async fn send(url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Got {
    let mut request = keeping_client().post(url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let headers = format!("{:?}", answer.headers());
    let text = |name: &str| {
        let value = answer.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let (retry_after, content_type) = (text("retry-after"), text("content-type"));
    let body = answer.text().await.unwrap();
    assert!(
        !headers.contains("sk-upstream") && !body.contains("sk-upstream"),
        "{status}"
    );
    Got {
        status,
        retry_after,
        content_type,
        body,
    }
}

/// An account of a provider with this key.
pub async fn account(admin: &User, provider: &str, name: &str, key: &str) -> String {
    let account = json!({
        "name": name, "provider": provider, "credential_type": "api_key", "api_key": key,
    });
    let made = admin.post("/v1/accounts").json(&account);
    made.expect(201).await.text("/id")
}
