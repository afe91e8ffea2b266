//! `skewtrap mcp`: an assistant speaks the protocol to the real program, which asks a real agent beside the double.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::support::agent::{Agent, skewtrap};
use crate::support::stage::{Stage, config};

/// The other side: one line of JSON for each message.
struct Assistant {
    process: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
    asked: u64,
}

impl Assistant {
    fn of(dir: &Path, agent: &str) -> Self {
        let mut process = skewtrap(dir)
            .args(["mcp", "--agent", agent])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let (says, hears) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
        let mut assistant = Self { process, says, hears: BufReader::new(hears), asked: 0 };
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
        let answer = assistant.ask("initialize", &hello);
        assert_eq!(answer["result"]["serverInfo"]["name"], "skewtrap", "{answer}");
        assert!(answer["result"]["capabilities"]["tools"].is_object(), "{answer}");
        assistant.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        assistant
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.says, "{message}").expect("it listens");
    }

    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.asked += 1;
        self.say(&json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params}));
        let mut line = String::new();
        self.hears.read_line(&mut line).expect("an answer");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: `{line}`"));
        assert_eq!(answer["id"], self.asked, "{answer}");
        answer
    }

    /// What a tool says, and whether it is an error.
    fn call(&mut self, tool: &str, arguments: &Value) -> (String, bool) {
        let answer = self.ask("tools/call", &json!({"name": tool, "arguments": arguments}));
        let result = &answer["result"];
        let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        (text.to_owned(), result["isError"] == true)
    }

    /// The assistant goes: the program ends by itself.
    fn leaves(mut self) {
        drop(self.says);
        assert!(self.process.wait().expect("it ends").success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assistant_reads_what_the_agent_knows_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let stage = Stage::of(config(&[(60, 9), (9, 0)]), dir.path()).await;
    let (at, url, base) = (dir.path().display().to_string(), stage.double.url.clone(), stage.base());
    let text = format!(
        "targets:\n  - {{ name: chat, url: '{url}', poll: 200ms }}\nrules:\n  - {{ name: skew, signal: load, across: dp_rank, trigger: {{ max_over_mean: 1.3, for: 1s }}, capture: none }}\n  - {{ name: calm, signal: load, across: dp_rank, trigger: {{ max_over_mean: 9, for: 1s }}, capture: none }}\ncapture: {{ http: {{ output_dir: '{base}' }} }}\nreceivers: []\nstate_dir: '{at}/agent'\nincident_dir: '{at}/kept'\nlisten: 127.0.0.1:0\n"
    );
    std::fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let talk = move || {
        let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
        let address = agent.behind("status page and API on ").trim().to_owned();
        agent.until("skew");
        let mut assistant = Assistant::of(dir.path(), &address);
        let listed = assistant.ask("tools/list", &json!({}));
        let tools = listed["result"]["tools"].as_array().expect("tools").clone();
        let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().expect("a name")).collect();
        assert_eq!(names, ["status", "why", "incidents", "incident", "causes", "verdicts"]);
        assert!(tools.iter().all(|tool| tool["annotations"]["readOnlyHint"] == true), "{tools:#?}");
        assert!(tools.iter().all(|tool| tool["inputSchema"]["type"] == "object"), "{tools:#?}");

        let (status, _) = assistant.call("status", &json!({}));
        assert!(status.contains("chat: sglang 0.5.16, 2 ranks"), "{status}");
        let mut incidents = json!([]);
        // The incident may be on its way.
        for _ in 0..600 {
            let (told, is_error) = assistant.call("incidents", &json!({"rule": "skew", "limit": 5}));
            assert!(!is_error, "{told}");
            incidents = serde_json::from_str(&told).expect("JSON");
            if incidents[0]["id"].is_string() {
                break;
            }
            std::thread::yield_now();
        }
        let id = incidents[0]["id"].as_str().expect("an incident").to_owned();
        assert_eq!((&incidents[0]["target"], &incidents[0]["rank"]["dp_rank"]), (&json!("chat"), &json!(0)));
        assert_eq!(assistant.call("incidents", &json!({"target": "other"})), ("[]".into(), false));
        let (one, _) = assistant.call("incident", &json!({"id": id}));
        let one: Value = serde_json::from_str(&one).expect("JSON");
        assert_eq!((&one["id"], &one["rule"]), (&json!(id), &json!("skew")));
        let (why, _) = assistant.call("why", &json!({"rule": "calm"}));
        assert!(why.starts_with("calm\n") && !why.contains("skew"), "{why}");
        for list in ["causes", "verdicts"] {
            let (told, is_error) = assistant.call(list, &json!({}));
            assert!(!is_error && serde_json::from_str::<Vec<Value>>(&told).is_ok(), "{told}");
        }
        // What cannot be told is said in words that an assistant reads.
        let (told, is_error) = assistant.call("why", &json!({"rule": "none"}));
        assert!(is_error && told.contains("no rule `none`; it has skew, calm"), "{told}");
        for (tool, takes) in [("status", "it takes nothing"), ("incidents", "it takes limit, rule, target")] {
            let (told, is_error) = assistant.call(tool, &json!({"since": "1h"}));
            assert!(is_error && told.contains("does not take `since`") && told.contains(takes), "{told}");
        }
        for odd in ["../../stop", "a/b", ""] {
            let (told, is_error) = assistant.call("incident", &json!({"id": odd}));
            assert!(is_error && told.contains("is no id of an incident"), "{told}");
        }
        let answer = assistant.ask("tools/call", &json!({"name": "capture", "arguments": {}}));
        assert!(
            answer["error"]["message"].as_str().is_some_and(|m| m.contains("no tool `capture`")),
            "{answer}"
        );
        assistant.leaves();
        drop(agent);

        let mut alone = Assistant::of(dir.path(), "http://127.0.0.1:1");
        let (told, is_error) = alone.call("status", &json!({}));
        assert!(is_error && told.contains("no agent answers at http://127.0.0.1:1"), "{told}");
        alone.leaves();
    };
    skewtrap::world::blocking(talk).await.expect("it talks");
    assert!(stage.double.requests().iter().all(|r| r.method == "GET"), "nothing was changed");
}
