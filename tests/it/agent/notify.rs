//! Messages on their way to receivers that are well, slow, dead, wrong, or a real Alertmanager.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use skewtrap::act::notify::plan::delivery;
use skewtrap::act::notify::send::signature_of;
use skewtrap::act::notify::worker::{DeliveryWorker, Now, workers};
use skewtrap::act::notify::{DeliveryResult, Receiver, Transport};
use skewtrap::http::Secret;
use skewtrap::http::client::client;
use skewtrap_core::incident::Incident;
use skewtrap_core::message::Update;
use skewtrap_trace::time::Time;
use tokio::sync::mpsc;

use crate::support::receiver::{AT, Double, hasty, incident, message, next, start, still, webhook};

#[tokio::test]
async fn a_webhook_that_is_down_for_a_while_gets_the_same_signed_message_in_the_end() {
    let double = Double::answering(vec![(503, ""), (500, "")]);
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/x"))], &hasty());
    let now = Time::from_epoch_s(AT);
    queues.hand_over(delivery(&"hook".into(), message(&incident(), Update::Fired), now)).unwrap();
    assert!(matches!(next(&mut results).await.result, DeliveryResult::Retry { attempts: 1, .. }));
    assert!(matches!(next(&mut results).await.result, DeliveryResult::Retry { attempts: 2, .. }));
    let sent = next(&mut results).await;
    assert_eq!(sent.result, DeliveryResult::Sent);
    assert_eq!(&*sent.key, "hook/20261124T034846Z-dp-load-skew-test:fired");

    let seen = double.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    for (headers, body) in seen.iter() {
        assert_eq!(headers["idempotency-key"], "20261124T034846Z-dp-load-skew-test:fired");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["x-skewtrap-signature-256"], signature_of(&Secret::new("k3y"), body.as_bytes()));
        assert_eq!(body, &seen[0].1);
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_and_one_that_is_gone_delay_nobody() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone_at = gone.local_addr().unwrap();
    drop(gone);
    let double = Double::default();
    let well = double.listen().await;
    let hangs = Receiver {
        timeout: Duration::from_millis(300),
        ..webhook("hangs", &format!("http://{}/s3cret", silent.local_addr().unwrap()))
    };
    let receivers = vec![
        hangs,
        webhook("gone", &format!("http://{gone_at}/s3cret")),
        webhook("well", &format!("http://{well}/")),
    ];
    let (queues, mut results) = start(receivers, &still());
    for name in ["hangs", "gone", "well"] {
        let due = delivery(&name.into(), message(&incident(), Update::Fired), Time::from_epoch_s(AT));
        queues.hand_over(due).unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..3 {
        let outcome = next(&mut results).await;
        if let DeliveryResult::Retry { why, .. } = &outcome.result {
            assert!(!why.contains("s3cret") && !why.contains("127.0.0.1"), "an address is a secret: {why}");
        }
        order.push(outcome);
    }
    assert_eq!(&*order[2].receiver, "hangs", "the others did not wait for it");
    assert!(order.iter().any(|o| &*o.receiver == "well" && o.result == DeliveryResult::Sent));
    let why = |name: &str| match &order.iter().find(|o| &*o.receiver == name).unwrap().result {
        DeliveryResult::Retry { why, .. } => why.clone(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(why("hangs"), "no answer within 0.3 s");
    assert!(why("gone").contains("Connection refused"), "{}", why("gone"));
}

#[tokio::test]
async fn a_redirect_and_a_refused_body_are_given_up_and_a_busy_receiver_is_obeyed() {
    let double = Double::answering(vec![(302, "http://127.0.0.1:1/"), (400, ""), (429, "7200"), (401, "")]);
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &still());
    let mut whys = Vec::new();
    for n in 0..4 {
        let mut incident = incident();
        incident.id = format!("incident-{n}").into();
        let due = delivery(&"hook".into(), message(&incident, Update::Fired), Time::from_epoch_s(AT));
        queues.hand_over(due).unwrap();
        whys.push(next(&mut results).await.result);
    }
    assert_eq!(
        whys[0],
        DeliveryResult::GivenUp {
            why: "it answered 302 Found; redirects are not followed, give its final address".into()
        }
    );
    assert_eq!(
        whys[1],
        DeliveryResult::GivenUp { why: "it refused the message with 400 Bad Request".into() }
    );
    assert_eq!(
        whys[2],
        DeliveryResult::Retry {
            attempts: 1,
            due: Time::from_epoch_s(AT + 7200.0),
            why: "it answered 429 Too Many Requests".into()
        }
    );
    assert!(
        matches!(&whys[3], DeliveryResult::Retry { why, .. } if why.contains("check the receiver's token"))
    );
}

#[tokio::test]
async fn a_receiver_that_wants_to_be_left_alone_for_longer_than_news_last_gets_it_at_the_last_moment() {
    let double = Double::answering(vec![(429, "604800")]);
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &still());
    let created = Time::from_epoch_s(AT - 3600.0);
    queues.hand_over(delivery(&"hook".into(), message(&incident(), Update::Fired), created)).unwrap();
    let result = next(&mut results).await.result;
    let due = Time::from_epoch_s(AT + 23.0 * 3600.0);
    assert!(matches!(result, DeliveryResult::Retry { due: when, .. } if when == due), "{result:?}");
}

#[tokio::test]
async fn old_news_that_waited_in_the_outbox_is_not_sent() {
    let double = Double::default();
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &still());
    let created = Time::from_epoch_s(AT - 25.0 * 3600.0);
    queues.hand_over(delivery(&"hook".into(), message(&incident(), Update::Fired), created)).unwrap();
    let result = next(&mut results).await.result;
    assert!(matches!(&result, DeliveryResult::GivenUp { why } if why.contains("old")), "{result:?}");
    assert!(double.bodies().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn the_story_of_one_incident_keeps_its_order_and_others_do_not_wait_for_it() {
    let double = Double::answering(vec![(503, "")]);
    let address = double.listen().await;
    let nanos = Arc::new(AtomicI64::new(Time::from_epoch_s(AT).nanos()));
    let read = nanos.clone();
    let now: Now = Arc::new(move || Time::from_nanos(read.load(Ordering::Relaxed)));
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &now);
    let of = |id: &str| Incident { id: id.into(), ..incident() };
    let hand = |id: &str, update| {
        queues.hand_over(delivery(&"hook".into(), message(&of(id), update), Time::from_epoch_s(AT))).unwrap();
    };
    hand("first", Update::Fired);
    hand("first", Update::Resolved);
    hand("second", Update::Fired);
    let (failed, passed) = (next(&mut results).await, next(&mut results).await);
    assert_eq!((&*failed.key, &*passed.key), ("hook/first:fired", "hook/second:fired"));
    assert_eq!(passed.result, DeliveryResult::Sent);

    nanos.fetch_add(10_000_000_000, Ordering::Relaxed);
    hand("third", Update::Fired);
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(next(&mut results).await.key.to_string());
    }
    sent.retain(|key| key.contains("first"));
    assert_eq!(sent, ["hook/first:fired", "hook/first:resolved"]);
}

#[tokio::test]
async fn a_message_that_nobody_took_for_a_day_is_given_up_with_its_last_reason() {
    let double = Double::answering(vec![(500, ""); 400]);
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &hasty());
    let due = delivery(&"hook".into(), message(&incident(), Update::Fired), Time::from_epoch_s(AT));
    queues.hand_over(due).unwrap();
    let last = loop {
        match next(&mut results).await.result {
            DeliveryResult::Retry { .. } => {}
            other => break other,
        }
    };
    assert!(
        matches!(&last, DeliveryResult::GivenUp { why } if why.starts_with("it answered 500") && why.contains("given up after")),
        "{last:?}"
    );
}

#[tokio::test]
async fn when_the_agent_goes_what_is_due_is_tried_once_more_and_the_workers_end() {
    let double = Double::default();
    let address = double.listen().await;
    let (outcomes, mut results) = mpsc::channel(8);
    let receivers = vec![webhook("hook", &format!("http://{address}/"))];
    let (queues, mut all) = workers(receivers, &client(None).unwrap(), &still(), &outcomes);
    let worker: DeliveryWorker = all.remove(0);
    queues
        .hand_over(delivery(&"hook".into(), message(&incident(), Update::Fired), Time::from_epoch_s(AT)))
        .unwrap();
    let stranger = delivery(&"nobody".into(), message(&incident(), Update::Fired), Time::from_epoch_s(AT));
    assert!(queues.hand_over(stranger).is_err(), "there is no such receiver");
    drop(queues);
    assert!(worker.run().await, "it is finished for good");
    assert_eq!(results.recv().await.unwrap().outcome.result, DeliveryResult::Sent);
}

#[tokio::test]
async fn slack_gets_its_blocks() {
    let double = Double::default();
    let address = double.listen().await;
    let slack = Transport::Slack { url: Secret::new(format!("http://{address}/services/T0/B0/key")) };
    let (queues, mut results) = start(vec![Receiver::new("team", slack)], &still());
    let due = delivery(&"team".into(), message(&incident(), Update::Verdict), Time::from_epoch_s(AT));
    queues.hand_over(due).unwrap();
    assert_eq!(next(&mut results).await.result, DeliveryResult::Sent);
    assert_eq!(double.bodies()[0]["blocks"][0]["type"], "header");
}

#[tokio::test]
async fn a_command_reads_the_message_and_its_whole_group_dies_at_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!("cat > {}; echo $1 >> {}", out.display(), dir.path().join("args").display());
    let argv =
        |script: String| vec!["sh".into(), "-c".into(), script, "sh".into(), "{update} of {rule}".into()];
    let writes = Receiver::new("writes", Transport::Command { argv: argv(script) });
    let late = dir.path().join("late");
    let hangs = Receiver {
        timeout: Duration::from_millis(300),
        ..Receiver::new(
            "hangs",
            Transport::Command { argv: argv(format!("echo $$ > {}; sleep 600 & wait", late.display())) },
        )
    };
    let missing = Receiver::new("missing", Transport::Command { argv: vec!["no-such-program-here".into()] });
    let (queues, mut results) = start(vec![writes, hangs, missing], &still());
    for name in ["writes", "hangs", "missing"] {
        let due = delivery(&name.into(), message(&incident(), Update::Captured), Time::from_epoch_s(AT));
        queues.hand_over(due).unwrap();
    }
    for _ in 0..3 {
        let outcome = next(&mut results).await;
        match (&*outcome.receiver, outcome.result) {
            ("writes", result) => assert_eq!(result, DeliveryResult::Sent),
            ("hangs", DeliveryResult::Retry { why, .. }) => assert_eq!(why, "no answer within 0.3 s"),
            ("missing", DeliveryResult::Retry { why, .. }) => {
                assert!(why.contains("no-such-program-here cannot be started"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    let body: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(out).unwrap()).unwrap();
    assert_eq!(body["update"], "captured");
    assert_eq!(std::fs::read_to_string(dir.path().join("args")).unwrap(), "captured of dp-load-skew\n");
    let leader = std::fs::read_to_string(late).unwrap();
    let group_lives = Command::new("pgrep").args(["-g", leader.trim()]).stdout(Stdio::piped()).output();
    if let Ok(found) = group_lives {
        let alive = String::from_utf8_lossy(&found.stdout).into_owned();
        let zombies_only = alive.lines().all(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "))
        });
        assert!(zombies_only, "its child outlived it: {alive}");
    }
}

#[tokio::test]
async fn nothing_more_is_sent_before_the_outbox_knows_what_became_of_the_last_message() {
    let double = Double::default();
    let address = double.listen().await;
    let (queues, mut results) = start(vec![webhook("hook", &format!("http://{address}/"))], &still());
    let now = Time::from_epoch_s(AT);
    for update in [Update::Fired, Update::Captured] {
        queues.hand_over(delivery(&"hook".into(), message(&incident(), update), now)).unwrap();
    }
    let first = results.recv().await.unwrap();
    // While it was on its way, the outbox offered it again.
    queues.hand_over(delivery(&"hook".into(), message(&incident(), Update::Fired), now)).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(double.bodies().len(), 1);
    drop(first);
    assert!(next(&mut results).await.key.ends_with(":captured"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let updates: Vec<_> = double.bodies().iter().map(|b| b["update"].as_str().unwrap().to_owned()).collect();
    assert_eq!(updates, ["fired", "captured"], "what was delivered is not delivered again");
}
