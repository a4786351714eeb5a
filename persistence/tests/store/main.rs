//! What the store guarantees, on both engines, through its public interface.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{sync::Arc, time::Duration};

use domain::{
    Code, Timestamp, clock::ManualClock, credential::CredentialKind, seal::MasterKeys, slug::Slug,
    token::TokenHash,
};
use persistence::{
    AuditFilter, CachedToken, Context, IdempotencyKey, Minted, NewCredential, NewPublisher,
    OpenError, PageRequest, PublisherPatch, QuotasPatch, Store, StoreError,
};
use sea_orm::ConnectionTrait as _;
use secrecy::SecretString;

mod bench;

use bench::{Bench, answer, operator, options, text_of};

fn code_of(error: StoreError) -> Code {
    match error {
        StoreError::Refused(problem) => problem.code,
        other => panic!("{other}"),
    }
}

async fn a_rotated_token_is_refused_when_the_call_returns(bench: &Bench) {
    let (_, old, id) = bench.publisher("a").await;
    assert!(bench.lives(&old).await);
    let scoped = bench.scoped(&old).await.credentials();
    let kind = CredentialKind::Admin;
    let zero = Duration::ZERO;
    let new = scoped
        .rotate_all(&operator(), kind, zero, NewCredential::default(), text_of)
        .await
        .unwrap();
    assert!(!bench.lives(&old).await);
    let new = SecretString::from(new.body);
    assert!(bench.lives(&new).await);
    // The other kinds are untouched, and the old credential is gone for good.
    let listed = scoped
        .credentials(
            None,
            PageRequest {
                limit: 50,
                after: None,
            },
        )
        .await
        .unwrap();
    assert_eq!(listed.items.len(), 4);
    assert!(listed.items.iter().all(|one| one.id != id));
    let refused = scoped
        .revoke(&operator(), kind, id, |()| answer(""))
        .await
        .unwrap_err();
    assert_eq!(code_of(refused), Code::NotFound);
}

async fn what_was_verified_once_is_known_without_a_query(bench: &Bench) {
    let (_, token, _) = bench.publisher("a").await;
    let cached = || bench.store.cached_token(TokenHash::of_secret(&token));
    assert!(matches!(cached(), CachedToken::Unknown));
    let scoped = bench.scoped(&token).await;
    bench.becomes_known(&token).await;
    // A change that leaves the token live: only the database can tell.
    let name = Some("Another".to_owned());
    scoped
        .update_publisher(&operator(), name, None, |_| answer(""))
        .await
        .unwrap();
    assert!(matches!(cached(), CachedToken::Stale));
    bench.becomes_known(&token).await;
    // A change that ends the token: the next look-up removes it.
    let kind = CredentialKind::Admin;
    let zero = Duration::ZERO;
    scoped
        .credentials()
        .rotate_all(&operator(), kind, zero, NewCredential::default(), text_of)
        .await
        .unwrap();
    assert!(matches!(cached(), CachedToken::Stale));
    assert!(!bench.lives(&token).await);
    assert!(matches!(cached(), CachedToken::Unknown));
}

async fn changes_of_different_quotas_both_last(bench: &Bench) {
    let (id, _, _) = bench.publisher("a").await;
    let mut changes = tokio::task::JoinSet::new();
    for n in 1..=10 {
        let pipelines = QuotasPatch {
            pipelines: Some(n),
            ..QuotasPatch::default()
        };
        let endpoints = QuotasPatch {
            webhook_endpoints: Some(n),
            ..QuotasPatch::default()
        };
        for quotas in [pipelines, endpoints] {
            let (system, by) = (bench.store.system(), operator());
            let patch = PublisherPatch {
                quotas,
                ..PublisherPatch::default()
            };
            changes.spawn(async move {
                system
                    .publishers()
                    .update_publisher(&by, id, patch, None, |_| answer(""))
                    .await
            });
        }
    }
    while let Some(change) = changes.join_next().await {
        change.unwrap().unwrap();
    }
    let quotas = bench
        .store
        .system()
        .publishers()
        .publisher(id)
        .await
        .unwrap()
        .quotas;
    assert!((1..=10).contains(&quotas.pipelines), "{quotas:?}");
    assert!((1..=10).contains(&quotas.webhook_endpoints), "{quotas:?}");
}

async fn an_overlap_lets_the_old_one_live_until_its_end(bench: &Bench) {
    let (_, old, _) = bench.publisher("a").await;
    let scoped = bench.scoped(&old).await;
    let overlap = Duration::from_mins(1);
    scoped
        .credentials()
        .rotate_all(
            &operator(),
            CredentialKind::Admin,
            overlap,
            NewCredential::default(),
            |minted: &Minted| {
                assert_eq!(minted.replaced.len(), 1);
                text_of(minted)
            },
        )
        .await
        .unwrap();
    assert!(bench.lives(&old).await);
    bench.clock.advance(overlap);
    assert!(!bench.lives(&old).await);
}

async fn the_last_admin_token_stays(bench: &Bench) {
    let (_, admin, id) = bench.publisher("a").await;
    let scoped = bench.scoped(&admin).await.credentials();
    let kind = CredentialKind::Admin;
    let refused = scoped
        .revoke(&operator(), kind, id, |()| answer(""))
        .await
        .unwrap_err();
    assert_eq!(code_of(refused), Code::LastAdminToken);
    scoped
        .mint(&operator(), kind, NewCredential::default(), text_of)
        .await
        .unwrap();
    scoped
        .revoke(&operator(), kind, id, |()| answer(""))
        .await
        .unwrap();
    assert!(!bench.lives(&admin).await);
    let wrong = scoped
        .revoke(&operator(), CredentialKind::Runner, id, |()| answer(""))
        .await;
    assert_eq!(code_of(wrong.unwrap_err()), Code::NotFound);
}

async fn one_key_makes_one_change(bench: &Bench) {
    let (_, admin, _) = bench.publisher("a").await;
    let scoped = bench.scoped(&admin).await;
    let with_key = |hash: u8| Context {
        idempotency: Some(IdempotencyKey {
            operation: "mint_credential".into(),
            key: "once".to_owned(),
            request_hash: [hash; 32],
        }),
        ..operator()
    };
    let mint = |hash: u8| {
        let (scoped, context) = (scoped.clone(), with_key(hash));
        async move {
            let kind = CredentialKind::Runner;
            scoped
                .credentials()
                .mint(&context, kind, NewCredential::default(), text_of)
                .await
        }
    };
    let (one, two) = tokio::join!(tokio::spawn(mint(1)), tokio::spawn(mint(1)));
    let (one, two) = (one.unwrap().unwrap(), two.unwrap().unwrap());
    assert_eq!(one.body, two.body);
    assert!(one.replayed != two.replayed);
    assert_eq!(
        code_of(mint(2).await.unwrap_err()),
        Code::IdempotencyKeyReused
    );
    // The response holds a credential: it is stored for ten minutes, and the key for a day.
    bench.clock.advance(Duration::from_mins(10));
    assert_eq!(
        code_of(mint(1).await.unwrap_err()),
        Code::SecretNoLongerAvailable
    );
    bench.clock.advance(Duration::from_hours(24));
    assert!(!mint(1).await.unwrap().replayed);
}

async fn the_log_is_complete_and_shows_tampering(bench: &Bench) {
    let (_, admin, _) = bench.publisher("a").await;
    let scoped = bench.scoped(&admin).await;
    for _ in 0..3 {
        let kind = CredentialKind::Runner;
        scoped
            .credentials()
            .mint(&operator(), kind, NewCredential::default(), text_of)
            .await
            .unwrap();
    }
    let page = PageRequest {
        limit: 2,
        after: None,
    };
    let first = scoped
        .operations()
        .audit(&AuditFilter::default(), page)
        .await
        .unwrap();
    assert_eq!((first.items.len(), first.next), (2, Some(3)));
    let verified = scoped.operations().verify_audit(None).await.unwrap();
    assert_eq!((verified.checked, verified.fault), (4, None));
    let checkpoint = verified.head;
    let db = sea_orm::Database::connect(&bench.url).await.unwrap();
    db.execute_unprepared("UPDATE audit_events SET actor_id = 'nobody' WHERE seq = 2")
        .await
        .unwrap();
    let found = scoped.operations().verify_audit(None).await.unwrap().fault;
    assert_eq!(found, Some(persistence::ChainFault::Edited { seq: 2 }));
    db.execute_unprepared("DELETE FROM audit_events WHERE seq = 2")
        .await
        .unwrap();
    let found = scoped
        .operations()
        .verify_audit(Some(&checkpoint))
        .await
        .unwrap()
        .fault;
    assert_eq!(found, Some(persistence::ChainFault::Gap { seq: 2 }));
    db.execute_unprepared("DELETE FROM audit_events")
        .await
        .unwrap();
    let found = scoped.operations().verify_audit(None).await.unwrap().fault;
    assert_eq!(found, Some(persistence::ChainFault::Head { seq: 4 }));
}

async fn a_refused_change_leaves_nothing(bench: &Bench) {
    let (_, admin, _) = bench.publisher("a").await;
    let scoped = bench.scoped(&admin).await;
    let past = NewCredential {
        expires_at: Some(Timestamp::from_ms(1)),
        ..Default::default()
    };
    let refused = scoped
        .credentials()
        .mint(&operator(), CredentialKind::Admin, past, text_of)
        .await;
    assert_eq!(code_of(refused.unwrap_err()), Code::ValidationFailed);
    assert_eq!(
        scoped
            .operations()
            .verify_audit(None)
            .await
            .unwrap()
            .checked,
        1
    );
    let new = NewPublisher {
        slug: Slug::parse("a").unwrap(),
        display_name: "again".to_owned(),
    };
    let taken = bench
        .store
        .system()
        .publishers()
        .create_publisher(&operator(), new, |_| answer(""))
        .await;
    assert_eq!(code_of(taken.unwrap_err()), Code::SlugTaken);
    // Nothing is half done: the same name under another slug works, and both logs are intact.
    bench.publisher("b").await;
    assert_eq!(
        bench
            .store
            .system()
            .operations()
            .verify_audit(None)
            .await
            .unwrap()
            .fault,
        None
    );
}

async fn another_process_hears_of_a_revocation(bench: &Bench) {
    let (_, old, _) = bench.publisher("a").await;
    let other = Store::open(options(&bench.url, &bench.keys, &bench.clock))
        .await
        .unwrap();
    let hash = TokenHash::of_secret(&old);
    assert!(other.authenticate(hash).await.unwrap().is_some());
    let scoped = bench.scoped(&old).await;
    let kind = CredentialKind::Admin;
    scoped
        .credentials()
        .rotate_all(
            &operator(),
            kind,
            Duration::ZERO,
            NewCredential::default(),
            text_of,
        )
        .await
        .unwrap();
    let mut heard = false;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        heard = other.authenticate(hash).await.unwrap().is_none();
        if heard {
            break;
        }
    }
    assert!(
        heard,
        "the other process still trusts the token after a second"
    );
    other.close().await;
}

/// Each process checks an expiry with its own clock, so a difference of clocks shifts it by as
/// much. A revocation does not depend on its time.
async fn clocks_that_differ_shift_an_expiry_and_no_revocation(bench: &Bench) {
    let (_, admin, _) = bench.publisher("a").await;
    let (skew, life) = (Duration::from_mins(5), Duration::from_mins(1));
    let ahead = Arc::new(ManualClock::at(bench.store.now().plus(skew)));
    let other = Store::open(options(&bench.url, &bench.keys, &ahead))
        .await
        .unwrap();
    let elsewhere = async |token: &SecretString| {
        let found = other.authenticate(TokenHash::of_secret(token)).await;
        found.unwrap().is_some()
    };
    let here = bench.scoped(&admin).await;
    let mint = async |expires_at: Timestamp| {
        let new = NewCredential {
            expires_at: Some(expires_at),
            ..NewCredential::default()
        };
        let kind = CredentialKind::Runner;
        let minted = here
            .credentials()
            .mint(&operator(), kind, new, text_of)
            .await
            .unwrap();
        SecretString::from(minted.body)
    };
    let brief = mint(bench.store.now().plus(life)).await;
    assert!(bench.lives(&brief).await && !elsewhere(&brief).await);
    let longer = mint(other.now().plus(life)).await;
    assert!(bench.lives(&longer).await && elsewhere(&longer).await);
    bench.clock.advance(life);
    ahead.advance(life);
    assert!(!bench.lives(&brief).await && !elsewhere(&brief).await);
    assert!(bench.lives(&longer).await && !elsewhere(&longer).await);

    // The process whose clock is ahead revokes it at a time that is in the other's future.
    let principal = other.authenticate(TokenHash::of_secret(&admin)).await;
    let there = other.scoped(&principal.unwrap().unwrap().scope);
    let none = NewCredential::default();
    there
        .credentials()
        .rotate_all(
            &operator(),
            CredentialKind::Admin,
            Duration::ZERO,
            none,
            text_of,
        )
        .await
        .unwrap();
    assert!(!elsewhere(&admin).await);
    let mut heard = false;
    for _ in 0..40 {
        heard = !bench.lives(&admin).await;
        if heard {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(heard, "a clock that is behind keeps a revoked token alive");
    other.close().await;
}

/// With an overlap a rotation leaves the old credentials alive. That must not circumvent the quota.
async fn what_rotations_leave_is_bounded(bench: &Bench) {
    let (id, admin, _) = bench.publisher("a").await;
    let quotas = QuotasPatch {
        credentials_per_kind: Some(2),
        ..QuotasPatch::default()
    };
    let patch = PublisherPatch {
        quotas,
        ..PublisherPatch::default()
    };
    let system = bench.store.system();
    system
        .publishers()
        .update_publisher(&operator(), id, patch, None, |_| answer(""))
        .await
        .unwrap();
    let scoped = bench.scoped(&admin).await;
    let kind = CredentialKind::Runner;
    let rotate = async |overlap: Duration| {
        let none = NewCredential::default();
        let context = operator();
        let credentials = scoped.credentials();
        let done = credentials.rotate_all(&context, kind, overlap, none, text_of);
        done.await.map_err(code_of)
    };
    let hour = Duration::from_hours(1);
    rotate(hour).await.unwrap();
    rotate(hour).await.unwrap();
    assert_eq!(rotate(hour).await.unwrap_err(), Code::QuotaExceeded);
    // Without an overlap no old credential is left, so a leaked one can always be replaced.
    rotate(Duration::ZERO).await.unwrap();
    rotate(hour).await.unwrap();
    bench.clock.advance(hour);
    rotate(hour).await.unwrap();
    rotate(hour).await.unwrap();
}

async fn a_wrong_master_key_is_refused(bench: &Bench) {
    let other = MasterKeys::generate_text("k1");
    let refused = Store::open(options(&bench.url, &other, &bench.clock))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, OpenError::WrongMasterKey { .. }),
        "{refused}"
    );
}

async fn suspended_and_deleted_publishers(bench: &Bench) {
    let (id, admin, _) = bench.publisher("a").await;
    assert!(bench.lives(&admin).await);
    let system = bench.store.system().publishers();
    system
        .suspend_publisher(&operator(), id, |_| answer(""))
        .await
        .unwrap();
    let principal = bench
        .store
        .authenticate(TokenHash::of_secret(&admin))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        principal.publisher.status,
        persistence::PublisherStatus::Suspended
    );
    system
        .resume_publisher(&operator(), id, None, |_| answer(""))
        .await
        .unwrap();
    let wrong = system
        .delete_publisher(&operator(), id, "b", None, |()| answer(""))
        .await;
    assert_eq!(code_of(wrong.unwrap_err()), Code::InvalidParameter);
    system
        .delete_publisher(&operator(), id, "a", None, |()| answer(""))
        .await
        .unwrap();
    assert!(!bench.lives(&admin).await);
    let (second, ..) = bench.publisher("a").await;
    let taken = system
        .resume_publisher(&operator(), id, None, |_| answer(""))
        .await;
    assert_eq!(code_of(taken.unwrap_err()), Code::SlugTaken);
    let slug = Slug::parse("a-again");
    system
        .resume_publisher(&operator(), id, slug, |_| answer(""))
        .await
        .unwrap();
    assert!(bench.lives(&admin).await);
    assert_ne!(second, id);
}

async fn the_seed_runs_twice_and_moves(bench: &Bench) {
    let system = bench.store.system().publishers();
    let first = SecretString::from("an-old-shared-token-of-32-characters");
    let second = SecretString::from("another-shared-token-of-32-characters");
    system.apply_seed(&first).await.unwrap();
    system.apply_seed(&first).await.unwrap();
    let principal = bench
        .store
        .authenticate(TokenHash::of_secret(&first))
        .await
        .unwrap()
        .unwrap();
    assert!(principal.grants().admin && principal.grants().runner);
    let scoped = bench.store.scoped(&principal.scope);
    // Rotating the runner token ends that right for good, even if the same value is applied again.
    let kind = CredentialKind::Runner;
    scoped
        .credentials()
        .rotate_all(
            &operator(),
            kind,
            Duration::ZERO,
            NewCredential::default(),
            text_of,
        )
        .await
        .unwrap();
    system.apply_seed(&first).await.unwrap();
    let principal = bench
        .store
        .authenticate(TokenHash::of_secret(&first))
        .await
        .unwrap()
        .unwrap();
    assert!(principal.grants().admin && !principal.grants().runner);
    system.apply_seed(&second).await.unwrap();
    assert!(!bench.lives(&first).await);
    assert!(bench.lives(&second).await);
    system.apply_seed(&first).await.unwrap();
    assert!(
        !bench.lives(&first).await,
        "a revoked value does not come back"
    );
}

macro_rules! on_both {
    ($($story:ident;)*) => {$(
        mod $story {
            #[tokio::test]
            async fn on_sqlite() {
                let bench = super::Bench::sqlite().await;
                super::$story(&bench).await;
                bench.store.close().await;
            }

            #[tokio::test]
            async fn on_postgres() {
                let Some(bench) = super::Bench::postgres(stringify!($story)).await else { return };
                super::$story(&bench).await;
                bench.store.close().await;
            }
        }
    )*};
}

on_both! {
    a_rotated_token_is_refused_when_the_call_returns;
    an_overlap_lets_the_old_one_live_until_its_end;
    what_was_verified_once_is_known_without_a_query;
    changes_of_different_quotas_both_last;
    the_last_admin_token_stays;
    one_key_makes_one_change;
    the_log_is_complete_and_shows_tampering;
    a_refused_change_leaves_nothing;
    another_process_hears_of_a_revocation;
    clocks_that_differ_shift_an_expiry_and_no_revocation;
    what_rotations_leave_is_bounded;
    a_wrong_master_key_is_refused;
    suspended_and_deleted_publishers;
    the_seed_runs_twice_and_moves;
}
