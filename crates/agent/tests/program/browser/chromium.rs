//! A Chromium without a window, spoken to over two pipes in its DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

/// It takes seconds to start where others work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its pipes are the descriptors 3 and 4. Of root it asks for --no-sandbox, and the page is the agent's own.
const RUN: &str = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                   --disable-background-networking --disable-component-update --disable-sync \
                   --remote-debugging-pipe --user-data-dir=\"$0\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";

pub(super) struct Browser {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    /// What it told without being asked.
    events: Vec<Value>,
    calls: u64,
    session: Option<String>,
    /// Removed when all else is gone.
    _profile: TempDir,
}

impl Browser {
    /// Starts it, with an empty page.
    pub(super) fn start() -> Self {
        let profile = TempDir::new().unwrap();
        let mut command = Command::new("sh");
        // What it makes for itself goes with the rest.
        command.args(["-c", RUN]).arg(profile.path()).env("TMPDIR", profile.path()).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let messages = stdout.split(0).map_while(Result::ok);
            let mut read = messages.filter_map(|message| serde_json::from_slice::<Value>(&message).ok());
            read.all(|message| sender.send(message).is_ok())
        });
        let (events, session) = (Vec::new(), None);
        let mut browser = Self { child, commands, answers, events, calls: 0, session, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].take();
        let attach = json!({ "targetId": target, "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)["sessionId"].take();
        browser.session = Some(session.as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks for something, and waits for it.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let written = write!(self.commands, "{message}\0").and_then(|()| self.commands.flush());
        assert!(written.is_ok(), "chromium does not run: the Debian package is of the same name");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut answer = self.answers.recv_timeout(left).unwrap_or_else(|error| {
                panic!("chromium does not answer {method} ({error}): is it installed?")
            });
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    /// Goes to an address.
    pub(super) fn open(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url }));
        assert!(gone["errorText"].is_null(), "{gone}");
    }

    /// What an expression is on the page.
    pub(super) fn evaluate(&mut self, expression: &str) -> Value {
        // In a block, names are its own.
        let mut said = self.call(
            "Runtime.evaluate",
            json!({ "expression": format!("{{ {expression} }}"), "returnByValue": true }),
        );
        assert!(said["exceptionDetails"].is_null(), "{expression}: {said}");
        said["result"]["value"].take()
    }

    /// Waits for a condition on the page.
    pub(super) fn until(&mut self, what: &str, condition: &str) {
        let deadline = Instant::now() + PATIENCE;
        // While it loads there are no elements.
        while self.evaluate(&format!("try {{ {condition} }} catch {{ false }}")) != true {
            if Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText");
                panic!("waited in vain: {what}: {condition}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses the key in whatever has the focus.
    pub(super) fn press_enter(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
                              "windowsVirtualKeyCode": 13 });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    /// Errors that the console has been told so far, exceptions, and what a policy did not let through.
    pub(super) fn complaints(&mut self) -> Vec<String> {
        // All that came before is read by then.
        self.evaluate("1");
        let is_bad = |event: &&Value| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => event["params"]["type"] != "log",
            "Log.entryAdded" => true,
            "Audits.issueAdded" => event["params"]["issue"]["code"] == "ContentSecurityPolicyIssue",
            _ => false,
        };
        self.events.iter().filter(is_bad).map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers are of its group, and would write to its directory.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
