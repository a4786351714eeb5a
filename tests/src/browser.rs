//! A real browser that a test drives: `tests/programs/browser.mjs`, which starts Debian's Chromium.

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{tools::root, world::skip};

/// How long a command may take. The browser itself gives up earlier, and says at what.
const LIMIT: Duration = Duration::from_mins(1);

/// A running browser. It ends when the last tab is dropped.
#[derive(Clone)]
pub struct Browser(Arc<Mutex<Process>>);

struct Process {
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    tabs: u64,
    _child: Child,
}

/// How a tab looks at pages.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The window's width, pixels.
    pub width: u32,
    /// Whether scripts run.
    pub javascript: bool,
    /// Whether the person likes it dark.
    pub dark: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            width: 1280,
            javascript: true,
            dark: false,
        }
    }
}

/// A tab with cookies of its own: to a server, another browser.
pub struct Tab {
    browser: Browser,
    number: u64,
    look: Look,
}

/// What a tab shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The address.
    pub url: String,
    /// The status of the answer.
    pub status: u64,
    /// All text, as it is read.
    pub text: String,
}

impl Browser {
    /// Starts it; `None` if the test called `name` has to be skipped.
    pub async fn start(name: &str) -> Option<Self> {
        let node_path: PathBuf = match std::env::var_os("STATIONMASTER_TEST_NODE_PATH") {
            Some(path) => path.into(),
            None => root().join("target/npm/node_modules"),
        };
        let given = std::env::var_os("STATIONMASTER_TEST_CHROMIUM");
        let chromium = given.map_or_else(|| PathBuf::from("/usr/bin/chromium"), PathBuf::from);
        let needed = [
            node_path.join("playwright-core"),
            node_path.join("axe-core"),
            chromium.clone(),
        ];
        if let Some(missing) = needed.iter().find(|path| !path.exists()) {
            let missing = missing.display();
            skip(
                name,
                &format!("{missing} is missing; scripts/test installs it"),
            );
            return None;
        }
        let mut child = Command::new("node")
            .arg(root().join("tests/programs/browser.mjs"))
            .env("STATIONMASTER_TEST_NODE_PATH", node_path)
            .env("STATIONMASTER_TEST_CHROMIUM", chromium)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let process = Process {
            input: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            tabs: 0,
            _child: child,
        };
        let browser = Self(Arc::new(Mutex::new(process)));
        let ready = browser.0.lock().await.answer().await;
        assert!(ready["ready"].is_string(), "the browser starts: {ready}");
        Some(browser)
    }

    /// A new tab for the pages of this origin.
    pub async fn tab(&self, origin: &str, look: Look) -> Tab {
        let mut process = self.0.lock().await;
        process.tabs += 1;
        let number = process.tabs;
        let command = json!({
            "command": "tab",
            "tab": number,
            "origin": origin,
            "width": look.width,
            "javascript": look.javascript,
            "scheme": if look.dark { "dark" } else { "light" },
        });
        process.ask(&command).await;
        Tab {
            browser: self.clone(),
            number,
            look,
        }
    }
}

impl Process {
    async fn answer(&mut self) -> Value {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.expect("the browser answers in time").unwrap();
        serde_json::from_str(&line.expect("the browser runs")).unwrap()
    }

    async fn ask(&mut self, command: &Value) -> Value {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
        let answer = self.answer().await;
        assert!(
            answer["error"].is_null(),
            "{command}: {}",
            answer["error"].as_str().unwrap()
        );
        answer
    }
}

impl Tab {
    async fn ask(&self, mut command: Value) -> Value {
        command["tab"] = self.number.into();
        self.browser.0.lock().await.ask(&command).await
    }

    async fn shown(&self, command: Value) -> Shown {
        let answer = self.ask(command).await;
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        Shown {
            url: text("url"),
            status: answer["status"].as_u64().unwrap(),
            text: text("text"),
        }
    }

    /// Opens a path of the tab's origin.
    pub async fn open(&self, path: &str) -> Shown {
        self.shown(json!({"command": "open", "path": path})).await
    }

    /// What it shows now.
    pub async fn read(&self) -> Shown {
        self.shown(json!({"command": "read"})).await
    }

    /// Types into the field with this label.
    pub async fn fill(&self, label: &str, value: &str) {
        self.ask(json!({"command": "fill", "name": label, "value": value}))
            .await;
    }

    /// Chooses the radio button or checkbox with this label.
    pub async fn check(&self, label: &str) {
        self.ask(json!({"command": "choose", "name": label})).await;
    }

    /// Chooses an option of the list with this label.
    pub async fn select(&self, label: &str, value: &str) {
        self.ask(json!({"command": "choose", "name": label, "value": value}))
            .await;
    }

    /// Presses a button, and waits for the page that it leads to.
    pub async fn press(&self, button: &str) -> Shown {
        self.shown(json!({"command": "press", "name": button}))
            .await
    }

    /// Presses a button that leads to no other page.
    pub async fn touch(&self, button: &str) {
        self.ask(json!({"command": "touch", "name": button})).await;
    }

    /// Follows a link.
    pub async fn follow(&self, link: &str) -> Shown {
        self.shown(json!({"command": "press", "role": "link", "name": link}))
            .await
    }

    /// Goes back.
    pub async fn back(&self) -> Shown {
        self.shown(json!({"command": "back"})).await
    }

    /// Loads the page again.
    pub async fn reload(&self) -> Shown {
        self.shown(json!({"command": "reload"})).await
    }

    /// Waits until the page says this.
    pub async fn see(&self, text: &str) -> Shown {
        self.shown(json!({"command": "see", "text": text})).await
    }

    /// The page's source, and the headers that it came with.
    pub async fn source(&self) -> (String, Value) {
        let answer = self.ask(json!({"command": "source"})).await;
        let source = answer["source"].as_str().unwrap().to_owned();
        (source, answer["headers"].clone())
    }

    /// The cookies of this tab, as the browser describes them.
    pub async fn cookies(&self) -> Vec<Value> {
        let answer = self.ask(json!({"command": "cookies"})).await;
        answer["cookies"].as_array().unwrap().clone()
    }

    /// Gives the device an authenticator, and a person who agrees to everything.
    pub async fn authenticator(&self) {
        self.ask(json!({"command": "authenticator"})).await;
    }

    /// Writes a picture of the whole page.
    pub async fn picture(&self, file: &std::path::Path) {
        self.ask(json!({"command": "picture", "file": file})).await;
    }

    /// Asserts that the page can be used by everybody, fits into the window, and did nothing that
    /// its policy forbids. Without scripts there is nobody to judge all but the last.
    pub async fn judge(&self) {
        let page = self.read().await.url;
        let look = self.look;
        if look.javascript {
            let answer = self.ask(json!({"command": "judge"})).await;
            assert_eq!(answer["faults"], json!([]), "{page} with {look:?}");
        }
        let answer = self.ask(json!({"command": "trouble"})).await;
        assert_eq!(answer["trouble"], json!([]), "{page} with {look:?}");
    }
}
