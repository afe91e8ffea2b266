//! What `file` promises.

use schemars::{JsonSchema, SchemaGenerator};

use super::*;
use crate::config::capture::HttpText;
use crate::config::condition::TriggerText;
use crate::config::rule::RuleText;
use crate::config::signal::{SignalText, user_signals_of};
use crate::config::target;
use skewtrap_core::rule::Statistic;
use skewtrap_core::signal::catalog::Kind;
use skewtrap_core::signal::user_metric::MetricStat;

fn nothing(path: &str) -> Result<Vec<(String, String)>, String> {
    Err(format!("cannot read {path}: no such file"))
}

fn problems(text: &str) -> String {
    load("skewtrap.yaml", text, &nothing)
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_file_without_keys_is_a_configuration_with_the_shipped_rules() {
    let loaded = load("skewtrap.yaml", DEFAULTS, &nothing);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let config = loaded.config.expect("it may run");
    let names: Vec<&str> = config.rules.iter().map(|r| &*r.rule.name).collect();
    assert_eq!(names, ["dp-load-skew", "stuck-rank"]);
    assert_eq!((config.listen.as_str(), config.budget.windows), ("127.0.0.1:9464", 4));
}

#[test]
fn a_full_configuration_is_read() {
    let text = "
targets:
  - name: a
    url: http://10.0.0.5:30000/
    engine: sglang
    logs: [/var/log/sglang.log, { path: '-', zone: UTC, from_start: true }]
    metrics: /internal/metrics
    api_key: { env: SGLANG_KEY }
    path_map: [{ server: /tmp/profiles, agent: /mnt/profiles/ }]
signals:
  - { name: ttft_ms, unit: ms, pattern: 'ttft=(?<value>[0-9.]+) rank=(?<dp_rank>[0-9]+)' }
  - { name: decode_rate, kind: counter, prometheus: { url: http://prometheus:9090, query: sum by (dp_rank) (x) } }
rules:
  - preset:starved-rank
  - mine.yaml
  - { name: slow-first-token, signal: ttft_ms, trigger: { max_over_mean: 2, for: 5s }, capture: none, notify: oncall }
capture: { http: { output_dir: /tmp/profiles, num_steps: 20 } }
budget: { stalled: 1m, bytes: 5GiB, windows: 2 }
receivers:
  - { name: oncall, webhook: { url: { env: HOOK }, signing_key: { file: /run/secrets/hook } }, min_severity: warning }
  - { name: chat, slack: { url: { env: SLACK } }, updates: [fired, verdict] }
state_dir: /var/lib/skewtrap
listen: 0.0.0.0:9464
token: { file: /run/secrets/token }
";
    let mine = |path: &str| {
        assert_eq!(path, "mine.yaml");
        Ok(vec![(
            path.to_owned(),
            "rules:\n  - name: mine\n    signal: kv_usage\n    trigger: { cv: 0.4 }\n".into(),
        )])
    };
    let loaded = load("skewtrap.yaml", text, &mine);
    let problems: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let config = loaded.config.expect("it may run");
    let target = &config.targets[0];
    assert_eq!(target.metrics.as_deref(), Some("http://10.0.0.5:30000/internal/metrics"));
    assert_eq!(target.path_map, [("/tmp/profiles".to_owned(), "/mnt/profiles".to_owned())]);
    assert_eq!(target.logs[1], target::Log { path: "-".into(), zone: Some("UTC".into()), from_start: true });
    let names: Vec<&str> = config.rules.iter().map(|r| &*r.rule.name).collect();
    assert_eq!(names, ["starved-rank", "mine", "slow-first-token"]);
    let CaptureSpec::Http(window) = &config.rules[1].rule.capture else { panic!("the file's default") };
    assert_eq!((window.num_steps, window.output_dir.as_deref()), (Some(20), Some("/tmp/profiles")));
    assert_eq!(config.rules[2].rule.capture, CaptureSpec::None);
    assert!(config.catalog.signal_named("ttft_ms").is_some());
}

#[test]
fn everything_wrong_is_told_and_no_secret_is_shown() {
    let text = "
targets:
  - { url: 'localhost:30000', api_key: sk-very-secret, poll: 1ms }
  - { name: a b, logs: [] , zone: Mars }
signals:
  - { name: load, pattern: 'x=(?<value>[0-9]+)' }
  - { name: mine, pattern: 'x=([0-9]+)' }
rules:
  - preset:dp-laod-skew
  - gone.yaml
  - { name: x, signal: mine2, trigger: { cv: 0.2 }, notify: [oncal] }
receivers:
  - { name: oncall, slack: { url: https://hooks.example/T000/very-secret } }
  - { name: two, stdout: {}, command: { argv: [] } }
listen: localhost
budgt: {}
";
    let problems = problems(text);
    assert!(!problems.contains("very-secret"), "{problems}");
    insta::assert_snapshot!(problems, @r"
        error: skewtrap.yaml:3:12: `localhost:30000` is no server's address
          = write `url: http://127.0.0.1:30000`; keys go into `api_key`
        error: skewtrap.yaml:3:40: `api_key` is a secret and must not stand in the file
          = write `{ env: NAME }` or `{ file: PATH }`, and change the one that stood here
        error: skewtrap.yaml:3:62: `poll` must be between 100ms and 60s
        error: skewtrap.yaml:4:13: a target's name has 1 to 80 characters, none of them a space, quote or slash
           |
         4 |   - { name: a b, logs: [] , zone: Mars }
           |             ^^^
        error: skewtrap.yaml:4:29: unknown key `zone`
           |
         4 |   - { name: a b, logs: [] , zone: Mars }
           |                             ^^^^
          = `zone` belongs at the top of the file
        error: skewtrap.yaml:6:13: `load` is a built-in signal
           |
         6 |   - { name: load, pattern: 'x=(?<value>[0-9]+)' }
           |             ^^^^
          = give yours another name
        error: skewtrap.yaml:7:28: the pattern has no group `value`
           |
         7 |   - { name: mine, pattern: 'x=([0-9]+)' }
           |                            ^^^^^^^^^^^^
          = write `(?<value>[0-9.]+)` around the number
        error: skewtrap.yaml:9:5: no shipped rule is called `dp-laod-skew`
           |
         9 |   - preset:dp-laod-skew
           |     ^^^^^^^^^^^^^^^^^^^
          = did you mean `dp-load-skew`?
        error: skewtrap.yaml:10:5: cannot read gone.yaml: no such file
            |
         10 |   - gone.yaml
            |     ^^^^^^^^^
        error: skewtrap.yaml:11:24: unknown signal `mine2`
            |
         11 |   - { name: x, signal: mine2, trigger: { cv: 0.2 }, notify: [oncal] }
            |                        ^^^^^
          = did you mean `mine`?
        error: skewtrap.yaml:11:62: no receiver is called `oncal`
            |
         11 |   - { name: x, signal: mine2, trigger: { cv: 0.2 }, notify: [oncal] }
            |                                                              ^^^^^
          = did you mean `oncall`?
        error: skewtrap.yaml:13:35: a Slack webhook's address is a secret and must not stand in the file
          = write `{ env: NAME }` or `{ file: PATH }`, and change the one that stood here
        error: skewtrap.yaml:14:26: `command` and `stdout` in one receiver
            |
         14 |   - { name: two, stdout: {}, command: { argv: [] } }
            |                          ^
          = make two receivers of it
        error: skewtrap.yaml:15:9: `localhost` is no address and port
            |
         15 | listen: localhost
            |         ^^^^^^^^^
          = write `127.0.0.1:9464`, or `0.0.0.0:9464` with a `token`
        error: skewtrap.yaml:16:1: unknown key `budgt`
            |
         16 | budgt: {}
            | ^^^^^
          = did you mean `budget`?
        ");
}

#[test]
fn hosts_are_names_without_scheme_and_port() {
    let loaded = load("skewtrap.yaml", "hosts: [gpu7.example.com, agent]\n", &nothing);
    assert_eq!(loaded.config.expect("it may run").hosts, ["gpu7.example.com", "agent"]);
    for wrong in ["http://gpu7", "'gpu7:9464'", "''"] {
        let problems = problems(&format!("hosts: [{wrong}]\n"));
        assert!(
            problems.contains("is no host name") && problems.contains("without scheme and port"),
            "{problems}"
        );
    }
}

#[test]
fn a_file_that_says_nothing_is_an_error_and_not_a_file_of_defaults() {
    for text in ["", "# nothing yet\n", "---\n", "\n\n"] {
        assert!(
            problems(text).starts_with("error: skewtrap.yaml: the file says nothing"),
            "{text:?}: {}",
            problems(text)
        );
    }
    assert_eq!(problems(DEFAULTS), "");
    assert!(
        problems("targets: []\n").contains("error: skewtrap.yaml:1:10: no target: nothing would be watched")
    );
    assert!(problems("rules: []\n").contains("error: skewtrap.yaml:1:8: there are no rules in it"));
    let by_hand = "targets: [{ url: 'http://a:1' }]\nrules: []\n";
    assert!(
        problems(by_hand).contains("warning: skewtrap.yaml:2:8: no rules: nothing is captured but by hand")
    );
}

/// The keys that a type has in YAML.
fn keys_of<T: JsonSchema>() -> Vec<String> {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>();
    schema.get("properties").and_then(|p| p.as_object()).expect("a mapping").keys().cloned().collect()
}

fn assert_noted(settings: &Settings, prefix: &str, keys: &[String], but: &[&str]) {
    for key in keys.iter().filter(|k| !but.contains(&k.as_str())) {
        let full = format!("{prefix}{key}");
        let is_noted = settings.all.iter().any(|s| s.key == full || s.key.starts_with(&format!("{full}.")));
        assert!(is_noted, "{full} is in the schema and not among what holds:\n{settings}");
    }
}

#[test]
fn every_key_of_the_schema_is_among_what_holds() {
    let text = "
targets: [{ url: 'http://a:1' }]
receivers: [{ name: console, stdout: {} }]
signals:
  - { name: mine, pattern: 'x=(?<value>[0-9]+)' }
  - { name: wait, metric: 'sglang:queue_time_seconds', stat: p90, labels: { tp_rank: '0' } }
rules:
  - { name: a, signal: load, trigger: { cv: 0.4 } }
  - { name: b, signal: load, trigger: { any: [{ cv: 0.4 }, { any_member: { above: 9 } }] }, clear: { for: 20s } }
";
    let config = load("skewtrap.yaml", text, &nothing).config.expect("it may run");
    assert_noted(&config.settings, "", &keys_of::<FileText>(), &["targets", "rules"]);
    assert_noted(&config.targets[0].settings, "", &keys_of::<TargetText>(), &[]);
    let means = ["name", "webhook", "slack", "alertmanager", "command", "stdout"];
    assert_noted(&config.settings, "receivers.console.", &keys_of::<ReceiverText>(), &means);
    let metric = ["metric", "stat", "labels", "over"];
    let but_mine = [&["name", "prometheus"][..], &metric].concat();
    assert_noted(&config.settings, "signals.mine.", &keys_of::<SignalText>(), &but_mine);
    assert_noted(&config.settings, "signals.wait.", &metric.map(str::to_owned), &[]);
    let statistics: Vec<&str> = Statistic::ALL.iter().map(|s| s.name()).collect();
    let but = [&statistics[..], &["all", "any", "within_chance"]].concat();
    let [a, b] = &config.rules[..] else { panic!("two rules") };
    for rule in [a, b] {
        // An old name, whose value stands under the new one.
        assert_noted(&rule.settings, "", &keys_of::<RuleText>(), &["min_harm"]);
        assert_noted(&rule.settings, "capture.http.", &keys_of::<HttpText>(), &[]);
    }
    assert_noted(&a.settings, "trigger.", &keys_of::<TriggerText>(), &but);
    for place in ["trigger.any.0.", "trigger.any.1."] {
        assert_noted(&b.settings, place, &keys_of::<TriggerText>(), &but);
    }
    let value = |key: &str| b.settings.all.iter().find(|s| s.key == key).map(|s| s.value.as_str());
    assert_eq!((value("trigger.any.1.any_member"), value("clear.for")), (Some("above 9"), Some("20s")));
}

#[test]
fn what_a_rule_takes_from_the_configuration_is_said_to_come_from_there() {
    let text = "
capture:
  http: { num_steps: 20 }
rules:
  - mine.yaml
  - { name: a, signal: load, trigger: { cv: 0.4 }, capture: { http: { deadline: 9s } } }
";
    let mine = "rules: [{ name: b, signal: load, trigger: { cv: 0.4 } }]\n";
    let beside = |path: &str| Ok(vec![(path.to_owned(), mine.to_owned())]);
    let config = load("skewtrap.yaml", text, &beside).config.expect("it may run");
    assert_eq!(config.rules.len(), 2);
    for rule in &config.rules {
        let steps =
            rule.settings.all.iter().find(|s| s.key == "capture.http.num_steps").expect("it is noted");
        assert_eq!((steps.value.as_str(), steps.origin.to_string().as_str()), ("20", "skewtrap.yaml:3"));
    }
}

#[test]
fn with_several_servers_a_rule_that_captures_and_a_query_must_say_which_one() {
    let rule = |more: &str| {
        format!(
            "targets: [{{ name: a, url: 'http://a:1' }}, {{ name: b, url: 'http://b:1' }}]\nrules:\n\
             \x20 - {{ name: skew, signal: load, trigger: {{ max_over_mean: 1.2, for: 0s }}, {more} }}\n"
        )
    };
    let spans = problems(&rule("across: dp_rank, within: [role]"));
    assert!(spans.contains("rule skew captures, and its group spans servers"), "{spans}");
    assert!(spans.contains("name `target` in `across` or `within`"), "{spans}");
    for fine in ["across: dp_rank", "across: target, within: [role]", "within: [role], capture: none"] {
        assert_eq!(problems(&rule(fine)), "", "{fine}");
    }
    let query = "signals: [{ name: rate, prometheus: { url: 'http://p:1', query: x } }]\n";
    let text = rule("across: dp_rank") + query;
    assert!(problems(&text).contains("the query of signal rate needs `target`"));
    assert_eq!(problems(&text.replace("name: rate,", "name: rate, target: b,")), "");
    assert!(
        problems(&text.replace("name: rate,", "name: rate, target: c,")).contains("no target is called `c`")
    );
}

#[test]
fn signals_are_a_mapping_by_names_and_pages_say_how_they_name_ranks() {
    let text = "
targets:
  - url: 'http://a:1'
    metrics:
      - true
      - http://a:9400/metrics
      - url: http://router:29000/metrics
        ranks: { gpu: dp_rank, worker_id: { 'http://a:1': { dp_rank: 3 } } }
signals:
  queue_p90: { metric: 'sglang:queue_time_seconds', stat: p90, labels: { tp_rank: '0' }, over: 20s }
  hits: { metric: hits, stat: rate }
rules: [{ name: a, signal: queue_p90, trigger: { cv: 0.4 } }]
";
    let config = load("skewtrap.yaml", text, &nothing).config.expect("it may run");
    let target = &config.targets[0];
    assert_eq!(target.metrics.as_deref(), Some("http://a:1/metrics"));
    let pages: Vec<(&str, usize)> = target.pages.iter().map(|p| (p.url.as_str(), p.ranks.0.len())).collect();
    assert_eq!(pages, [("http://a:9400/metrics", 0), ("http://router:29000/metrics", 2)]);
    let own = user_signals_of(&config.signals, &config.catalog, &config.targets);
    let [queue, hits] = &own.metrics[..] else { panic!("two metrics") };
    assert_eq!((queue.stat, queue.over.as_secs()), (MetricStat::Quantile(0.9), 20));
    assert_eq!(queue.labels, [("tp_rank".into(), "0".into())]);
    assert_eq!((hits.stat, config.catalog.kind_of(hits.signal)), (MetricStat::Rate, Kind::Counter));
}

#[test]
fn what_is_wrong_with_a_metric_or_a_page_is_said_where_it_stands() {
    let text = "
targets:
  - { url: 'http://a:1', metrics: [true, { ranks: { gpu: dp } }] }
signals:
  a: { metric: x_bucket, stat: p90 }
  b: { metric: x, stat: p100, kind: counter }
  c: { pattern: '(?<value>.)', stat: mean }
  d: { metric: x, pattern: '(?<value>.)' }
rules: []
";
    let loaded = load("skewtrap.yaml", text, &nothing);
    let told: Vec<String> =
        loaded.diagnostics.iter().filter(|d| d.is_error()).map(ToString::to_string).collect();
    for wanted in [
        "`dp` is no axis of ranks",
        "a further metrics page needs its address",
        "a histogram is named without `_bucket`",
        "unknown `stat`: `p100`",
        "`kind` cannot be combined with `metric`: `stat` decides",
        "`stat` is of a `metric`, and there is none",
        "`metric` and `pattern` in one signal",
    ] {
        assert!(told.iter().any(|t| t.contains(wanted)), "{wanted} is not in {told:#?}");
    }
}

#[test]
fn a_store_with_its_pool_and_what_of_incidents_leaves_the_host_is_read() {
    let text = "store: s3://traces/of/skewtrap/\npool: prod-a\non_lease_loss: local_budget\n\
         upload: { rate: 5MiB, keep_local: 7d, raw: true }\n";
    let store = load("skewtrap.yaml", text, &nothing).config.expect("it may run").store.expect("named");
    let wanted = StoreConfig {
        address: "s3://traces/of/skewtrap".into(),
        pool: "prod-a".into(),
        on_lease_loss: OnLeaseLoss::LocalBudget,
        lease: None,
        rate: Some(5 << 20),
        keep_local: Some(Duration::from_secs(7 * 86_400)),
        raw: true,
        secrets: false,
    };
    assert_eq!(store, wanted);
    assert_eq!(load("skewtrap.yaml", DEFAULTS, &nothing).config.expect("it may run").store, None);
}

#[test]
fn the_lease_of_a_pool_is_in_the_store_or_an_object_of_kubernetes() {
    let of = |pool: &str, lease: &str| {
        let text = format!("store: s3://traces\npool: {pool}\nlease: {lease}\n");
        load("skewtrap.yaml", &text, &nothing)
    };
    let named =
        |lease| of("prod-a", lease).config.expect("it may run").store.expect("named").lease.expect("named");
    let default = named("{ kubernetes: {} }");
    assert_eq!((&*default.name, default.namespace, default.api), ("skewtrap-prod-a", None, None));
    let given = named("{ kubernetes: { name: l, namespace: prod, api: 'http://127.0.0.1:8001/' } }");
    let wanted = ("l", Some("prod"), Some("http://127.0.0.1:8001"));
    assert_eq!((&*given.name, given.namespace.as_deref(), given.api.as_deref()), wanted);
    // That there are no stores is said where there are none.
    let told = |pool, lease| {
        let of = of(pool, lease);
        let said = of.diagnostics.iter().map(|d| d.message.clone());
        said.filter(|message| !message.contains("built without stores")).collect::<Vec<_>>()
    };
    assert_eq!(told("prod-a", "{}"), ["`lease` names no place"]);
    assert_eq!(
        told("Prod_A", "{ kubernetes: {} }"),
        ["`skewtrap-Prod_A` is no name of an object of Kubernetes"]
    );
    assert_eq!(told("prod-a", "{ kubernetes: { api: 'u:p@x' } }").len(), 1);
    let alone = load("skewtrap.yaml", "lease: { kubernetes: {} }\n", &nothing);
    let told: Vec<_> = alone.diagnostics.iter().map(|d| &*d.message).collect();
    assert!(told.contains(&"`lease` is that of a pool, which needs a `store`"), "{told:?}");
}

#[test]
fn what_is_wrong_with_a_store_is_told_without_its_secret() {
    for (text, wanted) in [
        ("store: traces/x", "`traces/x` is no address of a store"),
        ("store: s3://", "names no bucket and no folder"),
        ("store: s3://key:s3cr3t@traces", "they belong into the environment"),
        ("store: file:///tmp\npool: a/b", "`a/b` is no name of a pool"),
        ("upload: { raw: true }", "`upload` has no effect without `store`"),
        ("pool: prod", "`pool` has no effect without `store`"),
        ("on_lease_loss: local_budget", "`on_lease_loss` has no effect without `store`"),
    ] {
        let told = problems(text);
        assert!(told.contains(wanted), "no `{wanted}` in:\n{told}");
        assert!(!told.contains("s3cr3t"), "{told}");
    }
    let told = problems("store: file:///tmp");
    assert_eq!(told.contains("built without stores"), cfg!(not(feature = "fleet")), "{told}");
}

#[test]
fn targets_are_discovered_in_one_place_that_is_written_whole() {
    use crate::config::discover::Discover;
    let of = |text: &str| load("skewtrap.yaml", text, &nothing).config.expect("it may run").discover;
    let Some(Discover::Dns { names, port, .. }) =
        of("discover: { dns: { names: [chat.prod.svc], port: 30000 } }")
    else {
        panic!("by names");
    };
    assert_eq!((names, port), (vec!["chat.prod.svc".to_owned()], 30000));
    let text =
        "discover: { kubernetes: { selector: app=chat, port: 30000, labels: { role: decode } }, every: 5s }";
    let Some(Discover::Kubernetes { pods, every }) = of(text) else { panic!("by pods") };
    assert_eq!((&*pods.selector, pods.namespace, every), ("app=chat", None, Duration::from_secs(5)));
    for (text, wanted) in [
        ("discover: { file: a.json, dns: { names: [b], port: 1 } }", "`discover` names one place"),
        ("discover: { dns: { names: [b] } }", "`dns` needs `names` and their `port`"),
        ("discover: { dns: { names: ['http://b'], port: 1 } }", "`http://b` is no name of DNS"),
        (
            "discover: { kubernetes: { selector: app=chat } }",
            "needs the `selector` of the pods and their `port`",
        ),
        ("discover: { kubernetes: { selector: a, port: 1, api: localhost } }", "`localhost` is no address"),
        ("discover: { kubernetes: { selector: a, port: 1 }, every: 10ms }", "`every` is at least 1s"),
    ] {
        let told = problems(text);
        assert!(told.contains(wanted), "no `{wanted}` in:\n{told}");
    }
}

#[test]
fn what_the_configuration_says_a_window_may_cost_holds_for_the_shipped_rules() {
    use crate::config::rules::PRESETS;
    let list: Vec<String> = PRESETS.iter().map(|preset| format!("'preset:{}'", preset.name)).collect();
    let text = format!(
        "targets: [{{ url: 'http://127.0.0.1:30000' }}]\nrules: [{}]\ncapture: {{ http: {{ max_stall: 1700ms }} }}\n",
        list.join(", ")
    );
    let config = load("skewtrap.yaml", &text, &nothing).config.expect("it may run");
    let mut count = 0;
    for checked in &config.rules {
        if let CaptureSpec::Http(http) = &checked.rule.capture {
            assert_eq!(http.max_stall, Some(Duration::from_millis(1700)), "{}", checked.rule.name);
            count += 1;
        }
    }
    assert!(count >= 10, "{count} shipped rules capture over HTTP");
}

#[test]
fn relative_paths_start_from_the_file_that_names_them() {
    let text = "
targets:
  - { url: 'http://127.0.0.1:1', api_key: { file: key }, ca_file: ca.pem, logs: [a.log, '-', /var/log/b.log] }
receivers: [{ name: a, slack: { url: { file: hook } } }]
token: { file: /run/token }
state_dir: state
";
    let config = load("/etc/skewtrap/skewtrap.yaml", text, &nothing).config.expect("it may run");
    let target = &config.targets[0];
    let file = |path: &str| Some(SecretRef::File(path.into()));
    assert_eq!(target.api_key, file("/etc/skewtrap/key"));
    assert_eq!(target.ca_file.as_deref(), Some("/etc/skewtrap/ca.pem"));
    let logs: Vec<&str> = target.logs.iter().map(|log| &*log.path).collect();
    assert_eq!(logs, ["/etc/skewtrap/a.log", "-", "/var/log/b.log"]);
    assert_eq!(
        (config.token, config.state_dir.as_deref()),
        (file("/run/token"), Some("/etc/skewtrap/state"))
    );
    let here = load("skewtrap.yaml", text, &nothing).config.expect("it may run");
    assert_eq!(here.targets[0].api_key, file("key"), "the file of the working folder itself");
}

#[test]
fn a_key_at_another_level_is_told_where_it_belongs() {
    for (text, wanted) in [
        ("targets:\n- url: 'http://a:1'\nengine: sglang\n", "`engine` belongs under `targets[]`"),
        ("targets: [{ url: 'http://a:1' }]\npath_map: []\n", "`path_map` belongs under `targets[]`"),
        ("targets: [{ url: 'http://a:1' }]\nmax_stall: 1s\n", "`max_stall` belongs under `capture.http`"),
        (
            "targets: [{ url: 'http://a:1' }]\ncapture: { http: { windows: 2 } }\n",
            "`windows` belongs under `budget`",
        ),
        (
            "targets: [{ url: 'http://a:1', watch_only: true }]\n",
            "`watch_only` belongs at the top of the file",
        ),
        ("targets: [{ url: 'http://a:1', zone: UTC }]\n", "`zone` belongs at the top of the file"),
        (
            "targets: [{ url: 'http://a:1' }]\nbudget: { captures: 2 }\n",
            "`captures` belongs under `rules[].limits`",
        ),
        ("targets: [{ url: 'http://a:1' }]\nfoo: 1\n", "known here: targets, discover,"),
        // The nearest key of its own mapping is the better guess.
        ("targets: [{ url: 'http://a:1', log: [a.log] }]\n", "did you mean `logs`?"),
        ("targets: [{ url: 'http://a:1' }]\ncolour: 1\n", "known here: targets, discover,"),
    ] {
        assert!(problems(text).contains(wanted), "{wanted}: {}", problems(text));
    }
}

#[test]
fn what_is_written_in_place_of_a_mapping_is_answered_with_the_mapping() {
    let receiver =
        |means: &str| format!("targets: [{{ url: 'http://a:1' }}]\nreceivers: [{{ name: a, {means} }}]\n");
    let rule = |keys: &str| format!("rules: [{{ name: a, signal: load, {keys} }}]\n");
    let trigger = |text: &str| rule(&format!("trigger: {text}"));
    for (text, wanted) in [
        (receiver("slack: 'https://hooks.slack.com/x'"), "write `slack: { url: { env: SLACK_URL } }`"),
        (receiver("webhook: 'http://hook/s3cret'"), "write `webhook: { url: { env: WEBHOOK_URL } }`"),
        (trigger("max_over_mean > 2"), "write `trigger: { max_over_mean: 2 }`"),
        (trigger("load is uneven"), "write for example `trigger: { max_over_mean: 1.5, for: 3s }`"),
        (rule("trigger: { cv: 0.3 }, capture: http"), "write `capture: { http: {} }`"),
        (
            "log: /var/log/x\n".to_owned(),
            "`log` is the agent's log format; the server's log goes under `targets[].logs`",
        ),
    ] {
        let told = problems(&text);
        assert!(told.contains(wanted), "no {wanted} in:\n{told}");
        assert!(!told.contains("s3cret") && !told.contains("slack.com"), "an address may be a key:\n{told}");
    }
}

#[test]
fn a_scheme_that_is_not_http_is_named() {
    for scheme in ["htp", "ftp"] {
        let wanted = format!("`{scheme}://` is no scheme that is spoken here: write `http://` or `https://`");
        for text in [
            format!("targets: [{{ url: '{scheme}://a:1' }}]\n"),
            format!("targets: [{{ url: 'http://a:1', metrics: [true, '{scheme}://a:2/metrics'] }}]\n"),
            format!(
                "targets: [{{ url: 'http://a:1' }}]\nreceivers: [{{ name: a, webhook: {{ url: '{scheme}://a:1' }} }}]\n"
            ),
        ] {
            assert!(problems(&text).contains(&wanted), "{text}: {}", problems(&text));
        }
    }
}

#[test]
fn a_page_may_name_ranks_by_every_axis_in_both_forms() {
    for axis in skewtrap_trace::rank::Axis::ALL {
        let label = axis.label();
        for of in [label.to_owned(), format!("{{ w0: {{ {label}: 3 }} }}")] {
            let text = format!(
                "targets: [{{ url: 'http://a:1', metrics: [true, {{ url: 'http://a:2/m', ranks: {{ gpu: {of} }} }}] }}]\n"
            );
            assert_eq!(problems(&text), "", "{text}");
        }
    }
}

#[test]
fn a_window_that_no_max_stall_allows_is_not_told_to_write_one() {
    let text = |steps: u32| {
        format!(
            "targets: [{{ url: 'http://a:1' }}]\ncapture: {{ http: {{ num_steps: {steps}, max_stall: 100ms }} }}\n"
        )
    };
    let (few, many) = (problems(&text(5)), problems(&text(1000)));
    assert!(few.contains("leave `num_steps` out, or write `max_stall: "), "{few}");
    assert!(many.contains("are predicted to silence a rank for"), "{many}");
    assert!(many.contains("= leave `num_steps` out") && !many.contains("or write `max_stall"), "{many}");
}
