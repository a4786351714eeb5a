//! What a target contains for a request.

use super::*;

#[tokio::test]
async fn a_target_has_all_that_a_request_needs() {
    for world in worlds().await {
        world
            .fixture
            .execute(
                "UPDATE webhook_endpoints SET ordered = TRUE, rate_limit_per_second = 7, \
                 retry_schedule = '1s,2s', max_in_flight = 3",
            )
            .await;
        let plain = EndpointKey {
            publisher: world.publisher,
            endpoint: world.fixture.endpoint(world.publisher, false).await,
        };
        let keys = [world.key(), plain];
        let targets = world.system().webhooks().targets(&keys).await.unwrap();
        let target = &targets[&world.key()];
        assert_eq!(
            target.url,
            format!("https://hooks.example/{}", world.endpoint)
        );
        assert_eq!(target.headers.get("x-own").map(String::as_str), Some("1"));
        let signing = world.created.webhook_signing.text.expose_secret();
        assert_eq!(target.secrets.len(), 1);
        assert_eq!(target.secrets[0].expose_secret(), signing);
        let bearer = target.bearer.as_ref().unwrap().expose_secret();
        assert_eq!(bearer, world.created.subcommand_bearer.text.expose_secret());
        assert!(target.ordered);
        assert_eq!(target.rate_limit_per_second, Some(7));
        assert_eq!(target.max_in_flight, Some(3));
        assert_eq!(target.retry_schedule, Schedule::parse("1s,2s").ok());

        let target = &targets[&plain];
        assert!(target.bearer.is_none() && !target.ordered);
        assert!(target.rate_limit_per_second.is_none() && target.retry_schedule.is_none());
    }
}

#[tokio::test]
async fn all_live_secrets_sign_from_the_moment_that_they_live() {
    for world in worlds().await {
        let key = world.key();
        let signing = async || {
            world.system().webhooks().targets(&[key]).await.unwrap()[&key]
                .secrets
                .clone()
        };
        assert_eq!(signing().await.len(), 1);
        world.fixture.clock.advance(Duration::from_millis(5));
        let scope = crate::Scope::of_row(world.publisher.uuid(), None);
        let scoped = world.fixture.store.scoped(&scope);
        for kind in [
            CredentialKind::WebhookSigning,
            CredentialKind::SubcommandBearer,
        ] {
            let new = NewCredential::default();
            scoped
                .credentials()
                .mint(&context(), kind, new, |_| no_content())
                .await
                .unwrap();
        }
        // The cache is trusted as long as the log of changes is read.
        world.fixture.store.poll_credential_changes().await.unwrap();
        let secrets = signing().await;
        let old = world.created.webhook_signing.text.expose_secret();
        assert_eq!(secrets.len(), 2);
        assert_ne!(secrets[0].expose_secret(), old, "the newest comes first");
        assert_eq!(secrets[1].expose_secret(), old);
        let target = world.system().webhooks().targets(&[key]).await.unwrap();
        let bearer = target[&key].bearer.as_ref().unwrap().expose_secret();
        assert_ne!(bearer, world.created.subcommand_bearer.text.expose_secret());
    }
}
