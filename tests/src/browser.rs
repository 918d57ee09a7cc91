//! A headless Chromium, driven through chromedriver by plain WebDriver HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ports;
use crate::process::Process;
use crate::wait::eventually;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Browser {
    address: SocketAddr,
    session: String,
    _driver: Process,
}

/// In the WebDriver protocol's notation.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";
/// Sanity cap: more than any page here has.
const TAB_STOPS: usize = 60;
const CLICK_ATTEMPTS: usize = 3;

impl Browser {
    /// Starts a browser with its files under `directory`. None, with the reason printed, if no
    /// browser is installed.
    pub fn start(directory: &Path) -> Option<Browser> {
        let found = Command::new("chromedriver").arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("skipped: chromedriver is not installed");
            return None;
        }
        let address = ports::reserve();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={}", address.port()));
        command.env("HOME", directory).env("TMPDIR", directory);
        let driver = Process::spawn(
            "chromedriver",
            &command,
            &directory.join("chromedriver.log"),
        );
        eventually("chromedriver answers", START_TIMEOUT, || {
            call(address, "GET", "/status", &Value::Null)
                .is_ok_and(|it| it["value"]["ready"] == true)
                .then_some(())
        });
        let profile = directory.join("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--window-size=1280,1000",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = call(address, "POST", "/session", &wanted).expect("a browser");
        let session = answer["value"]["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("no browser: {answer}"))
            .to_owned();
        Some(Browser {
            address,
            session,
            _driver: driver,
        })
    }

    #[track_caller]
    pub fn command(&self, path: &str, body: &Value) -> Value {
        let value = self.ask(path, body);
        assert!(value["error"].is_null(), "{path}: {value}");
        value
    }

    /// Returns errors as answers.
    #[track_caller]
    fn ask(&self, path: &str, body: &Value) -> Value {
        let path = format!("/session/{}{path}", self.session);
        let mut answer = call(self.address, "POST", &path, body).expect("chromedriver answers");
        answer["value"].take()
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({"url": url}));
    }

    /// The value of a script's `return`.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The resolved value of a promise.
    #[track_caller]
    pub fn run_async(&self, promise: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; Promise.resolve({promise}).then(done, e => done('failed: \
             ' + e));"
        );
        self.command("/execute/async", &json!({"script": script, "args": []}))
    }

    /// A real click: the element is scrolled into view and must not be covered. If the live page
    /// redraws it between the look-up and the click, it is looked up again, as a person would.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        for _ in 0..CLICK_ATTEMPTS {
            let found = self.command(
                "/element",
                &json!({"using": "css selector", "value": selector}),
            );
            let id = found.as_object().and_then(|it| it.values().next()).cloned();
            let id = id.expect("an element");
            let id = id.as_str().expect("an element's id").to_owned();
            let answer = self.ask(&format!("/element/{id}/click"), &json!({}));
            if answer["error"] != "stale element reference" {
                assert!(answer["error"].is_null(), "{selector}: {answer}");
                return;
            }
        }
        panic!("{selector} is drawn anew all the time");
    }

    /// Sends keys to the focused element, pressed and released one by one.
    pub fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}))
        });
        let strokes: Vec<_> = strokes.collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.command("/actions", &json!({"actions": [keyboard]}));
    }

    /// Presses Tab until the element has the focus, and checks that the focus is visible at each
    /// stop on the way.
    #[track_caller]
    pub fn tab_to(&self, selector: &str) {
        for _ in 0..TAB_STOPS {
            self.press(TAB);
            let stop = self.run(
                "const it = document.activeElement, ring = getComputedStyle(it); \
                 return [it.outerHTML, it === document.body || ring.outlineStyle !== 'none' && \
                 ring.outlineWidth !== '0px'];",
            );
            assert_eq!(stop[1], true, "the focus is not seen on {}", stop[0]);
            if self.run(&format!(
                "return document.activeElement === document.querySelector(\"{selector}\");"
            )) == true
            {
                return;
            }
        }
        panic!("{selector} is not reached by keyboard");
    }

    /// Waits until the condition holds. While the page is drawn anew an element may be missing: a
    /// condition that throws does not hold yet, and what it threw is printed.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: &str) {
        let script = format!(
            "try {{ return Boolean({condition}); }} catch (error) {{ return String(error); }}"
        );
        let mut thrown = Value::Null;
        eventually(what, Duration::from_secs(30), || {
            let holds = self.run(&script);
            if holds.is_string() && holds != thrown {
                eprintln!("{what}: {holds}");
                thrown = holds.clone();
            }
            (holds == true).then_some(())
        });
    }

    pub fn resize(&self, width: u32, height: u32) {
        // Through the browser's own debugging protocol: a window is never narrower than 500 pixels.
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.command("/goog/cdp/execute", &command);
    }

    pub fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let command =
            json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.command("/goog/cdp/execute", &command);
    }

    /// Saves it in the directory named by `CHUNKCACHE_SCREENSHOTS`, if that is set.
    pub fn screenshot(&self, name: &str) {
        let Some(directory) = std::env::var_os("CHUNKCACHE_SCREENSHOTS") else {
            return;
        };
        let command =
            json!({"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": true}});
        let picture = self.command("/goog/cdp/execute", &command);
        let path = Path::new(&directory).join(format!("{name}.png.base64"));
        let text = picture["data"].as_str().expect("a picture");
        std::fs::write(path, text).expect("a screenshot is written");
    }

    /// Lines that the page wrote to the console since the last call.
    pub fn console(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| format!("{}: {}", entry["level"], entry["message"]))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; the driver itself is killed with its process.
        let path = format!("/session/{}", self.session);
        let _ = call(self.address, "DELETE", &path, &Value::Null);
    }
}

fn call(address: SocketAddr, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok())
        .unwrap_or(0);
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(std::io::Error::other)
}
