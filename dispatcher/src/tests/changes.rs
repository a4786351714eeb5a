//! Changes of an endpoint take effect at once.

use domain::credential::CredentialKind;
use persistence::{EndpointPatch, Minted, NewCredential};
use secrecy::SecretString;

use super::*;

#[tokio::test]
async fn an_endpoint_that_is_disabled_gets_nothing_more_within_a_second() {
    let world = World::new("5s").await;
    let receiver = Receiver::holding(vec![reply(204)]).await;
    let endpoint = world.endpoint(receiver.url(), false).await;
    for _ in 0..60 {
        world.event(endpoint).await;
    }
    let (dispatcher, stop) = world.start();
    receiver.has(1).await;
    let enable = async |enabled| {
        let patch = EndpointPatch {
            enabled: Some(enabled),
            ..EndpointPatch::default()
        };
        let context = Context::system("test");
        world
            .scoped
            .webhooks()
            .update_endpoint(
                &context,
                endpoint,
                None,
                |_| Ok(patch.clone()),
                |_| no_content(),
            )
            .await
            .unwrap();
    };
    enable(false).await;
    receiver.answer();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = receiver.received().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(receiver.received().len(), before);
    assert!(before < 60, "all were out already");
    enable(true).await;
    world.until_status(endpoint, "succeeded").await;
    each_came_once(&receiver, 60);
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn what_is_changed_holds_for_the_next_delivery() {
    let world = World::new("5s").await;
    let receivers = [
        Receiver::start(vec![reply(204)]).await,
        Receiver::start(vec![reply(204)]).await,
    ];
    let endpoint = world.endpoint(receivers[1].url(), false).await;
    let (dispatcher, stop) = world.start();
    let context = Context::system("test");
    let mut old = world.created.webhook_signing.text.clone();
    for round in 0..6 {
        // The dispatcher has just used the target that it has read.
        world.event(endpoint).await;
        world.until_status(endpoint, "succeeded").await;
        let receiver = &receivers[round % 2];
        let patch = EndpointPatch {
            url: Some(receiver.url()),
            ..EndpointPatch::default()
        };
        let webhooks = world.scoped.webhooks();
        let update = webhooks.update_endpoint(
            &context,
            endpoint,
            None,
            |_| Ok(patch.clone()),
            |_| no_content(),
        );
        update.await.unwrap();
        let (kind, scoped) = (CredentialKind::WebhookSigning, &world.scoped);
        let new = NewCredential::default();
        let minted: Minted = made!(|keep| scoped.credentials().rotate_all(
            &context,
            kind,
            Duration::ZERO,
            new,
            keep
        ));
        let id = world.event(endpoint).await.to_string();
        world.until_status(endpoint, "succeeded").await;
        let all = receiver.received();
        let last = all.last().unwrap();
        assert_eq!(last.headers["webhook-id"], id, "round {round}: it moved");
        let at: i64 = last.headers["webhook-timestamp"].parse().unwrap();
        let signed = |secret: &SecretString| {
            let secrets = std::slice::from_ref(secret);
            signature::standard(secrets, &id, at, last.body.as_bytes())
        };
        let header = &last.headers["webhook-signature"];
        assert_ne!(*header, signed(&old), "round {round}");
        assert_eq!(*header, signed(&minted.text), "round {round}");
        old = minted.text;
    }
    end(world, dispatcher, stop).await;
}
