//! Slack messages about trains, from the commit to the receiver.

use domain::train::NoticeKind;
use persistence::{LastNotice, NewSlack, NewTrain, Train};
use secrecy::SecretString;

use super::*;

impl World {
    fn notices_after(mut self, waits: &str) -> Self {
        self.settings.notices = Schedule::parse(waits).unwrap();
        self
    }

    /// A train that has no usable account, with a webhook at a URL.
    async fn exhausted(&self, slug: &str, url: &str) -> Train {
        let slack = NewSlack {
            webhook_url: SecretString::from(url.to_owned()),
            channel: Some("#ops".to_owned()),
            events: vec![NoticeKind::TrainExhausted],
        };
        let new = NewTrain {
            slug: Slug::parse(slug).unwrap(),
            description: None,
            enabled: true,
            sticky: false,
            slack: Some(slack),
        };
        let context = Context::system("test");
        let train: Train = made!(|keep| self.scoped.trains().create_train(&context, new, keep));
        assert!(
            self.scoped
                .trains()
                .tell_exhausted(train.id, slug, None)
                .await
                .unwrap()
        );
        train
    }

    /// The train's last message, once `done` accepts it.
    async fn last(&self, train: &Train, done: impl Fn(&LastNotice) -> bool) -> LastNotice {
        for _ in 0..1000 {
            let last = self.scoped.trains().last_notice(train.id).await.unwrap();
            if let Some(last) = last.filter(&done) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the message did not get there");
    }
}

fn ended(last: &LastNotice) -> bool {
    last.finished_at.is_some()
}

#[tokio::test]
async fn a_commit_wakes_the_sender_and_a_failure_is_tried_again() {
    let world = World::new("5s").await.notices_after("50ms,50ms,50ms");
    let (dispatcher, stop) = world.start();
    let receiver = Receiver::start(vec![reply(500), reply(302), reply(200)]).await;
    let train = world.exhausted("nightly", &receiver.url()).await;
    let last = world.last(&train, ended).await;
    assert_eq!((last.attempts, last.error), (3, None));
    let messages = receiver.received();
    assert_eq!(messages.len(), 3);
    assert!(messages.iter().all(|one| one.body == messages[0].body));
    let body: serde_json::Value = serde_json::from_str(&messages[0].body).unwrap();
    assert_eq!(body["channel"], "#ops");
    assert!(body["text"].as_str().unwrap().contains("`nightly`"));
    assert!(dispatcher.healthy());
    stop.cancel();
    dispatcher.drained().await;
}

#[tokio::test]
async fn the_last_try_is_the_last_and_what_can_not_arrive_is_not_tried_again() {
    let world = World::new("5s").await.notices_after("20ms,20ms");
    let (dispatcher, stop) = world.start();
    let failing = Receiver::start(vec![reply(500)]).await;
    let gone = Receiver::start(vec![reply(404)]).await;
    let failing_train = world.exhausted("failing", &failing.url()).await;
    let gone_train = world.exhausted("gone", &gone.url()).await;
    // An address in a private network, which the policy does not allow.
    let refused_train = world.exhausted("refused", "http://10.0.0.1/hook").await;
    for (train, attempts, class) in [
        (&failing_train, 3, "status"),
        (&gone_train, 1, "status"),
        (&refused_train, 3, "destination_refused"),
    ] {
        let last = world.last(train, ended).await;
        assert_eq!(
            (last.attempts, last.error.as_deref()),
            (attempts, Some(class))
        );
    }
    assert_eq!((failing.received().len(), gone.received().len()), (3, 1));
    stop.cancel();
    dispatcher.drained().await;
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_finished_and_written_down() {
    let world = World::new("5s").await;
    let (dispatcher, stop) = world.start();
    let slow = Reply {
        after: Duration::from_millis(500),
        ..reply(200)
    };
    let receiver = Receiver::start(vec![slow]).await;
    let train = world.exhausted("nightly", &receiver.url()).await;
    receiver.has(1).await;
    stop.cancel();
    dispatcher.drained().await;
    let last = world
        .scoped
        .trains()
        .last_notice(train.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((ended(&last), last.error), (true, None));
}

#[tokio::test]
async fn few_of_one_publisher_are_under_way_at_a_time() {
    let world = World::new("5s").await;
    let hanging = Receiver::start(vec![Reply {
        after: Duration::from_mins(1),
        ..reply(200)
    }])
    .await;
    for at in 0..8 {
        world
            .exhausted(&format!("train-{at}"), &hanging.url())
            .await;
    }
    let (dispatcher, stop) = world.start();
    hanging.has(4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(hanging.received().len(), 4);
    stop.cancel();
    // Ended by the deadlines of the requests, not by the receiver.
    dispatcher.drained().await;
    assert_eq!(hanging.received().len(), 4);
}
