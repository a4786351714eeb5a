use std::{collections::BTreeSet, time::Duration};

use domain::{
    audit::Action,
    id::{Id as _, PublisherId},
};
use sea_orm::{ColumnTrait as _, QueryFilter as _, QueryOrder as _, sea_query::Expr};

use super::*;
use crate::{
    AuditFilter, NewPublisher, PageRequest, Store,
    fixture::{Fixture, context, engines, no_content},
    store::freshness::publish_credential_changes,
    survey_keys,
};

const DAY: Duration = Duration::from_hours(24);

async fn rows(store: &Store) -> Vec<owner_keys::Model> {
    let rows = owner_keys::Entity::find().order_by_asc(owner_keys::Column::OwnerId);
    rows.all(store.read()).await.unwrap()
}

async fn wrapped_by(store: &Store) -> BTreeSet<String> {
    let rows = rows(store).await.into_iter();
    rows.map(|row| row.master_key_id).collect()
}

async fn create(store: &Store, slug: &str) -> Result<(), StoreError> {
    let new = NewPublisher {
        slug: domain::slug::Slug::parse(slug).unwrap(),
        display_name: slug.to_owned(),
    };
    let (system, context) = (store.system(), context());
    let publishers = system.publishers();
    let made = publishers.create_publisher(&context, new, |_| no_content());
    made.await.map(|_| ())
}

/// Makes all steps. Returns how many owners were moved and passed, and whose keys do not open.
async fn rewrap(store: &Store, limit: u64, dry: bool) -> (u64, u64, Vec<ClosedKeys>) {
    let (mut moved, mut passed, mut closed, mut cursor) = (0, 0, Vec::new(), None);
    loop {
        let step = store
            .system()
            .operations()
            .rewrap_keys(cursor, limit, dry)
            .await
            .unwrap();
        moved += step.moved;
        passed += step.passed;
        closed.extend(step.closed);
        cursor = step.next;
        if cursor.is_none() {
            return (moved, passed, closed);
        }
    }
}

async fn told(store: &Store) -> Vec<u64> {
    let filter = AuditFilter {
        action: Some(Action::KeysRewrapped),
        ..AuditFilter::default()
    };
    let page = PageRequest {
        limit: 100,
        after: None,
    };
    let found = store
        .system()
        .operations()
        .audit(&filter, page)
        .await
        .unwrap();
    let owners = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let rows = found.items.iter().rev();
    rows.map(|row| owners(&row.metadata)["owners"].as_u64().unwrap())
        .collect()
}

async fn sound(store: &Store, publisher: Option<PublisherId>) {
    let found = store
        .system()
        .operations()
        .verify_audit(publisher)
        .await
        .unwrap();
    assert_eq!(found.fault, None);
}

#[tokio::test]
async fn all_move_in_steps_and_the_same_keys_open() {
    for fixture in engines().await {
        let mut publishers = Vec::new();
        for at in 0..7 {
            publishers.push(fixture.publisher(&format!("p{at}")).await.publisher.id);
        }
        let before = rows(&fixture.store).await;
        let keys = fixture.keys.with_fresh_first("new").unwrap();
        let other = fixture.beside(&keys).await;
        assert_eq!(
            other.system().operations().keys_to_rewrap().await.unwrap(),
            8
        );

        assert_eq!(rewrap(&other, 3, true).await, (8, 0, vec![]));
        assert_eq!(rows(&fixture.store).await, before, "a dry run");
        // Interrupted after its first step, and started again.
        let step = other
            .system()
            .operations()
            .rewrap_keys(None, 3, false)
            .await
            .unwrap();
        assert_eq!(step.moved, 3);
        assert_eq!(
            other.system().operations().keys_to_rewrap().await.unwrap(),
            5
        );
        assert_eq!(rewrap(&other, 3, false).await, (5, 0, vec![]));
        assert_eq!(rewrap(&other, 3, false).await, (0, 0, vec![]));
        assert_eq!(told(&other).await, [3, 3, 2], "a row with each change");

        let only_new = keys.without("test").unwrap();
        let after = rows(&fixture.store).await;
        for (old, new) in before.iter().zip(&after) {
            let old = opened(&fixture.keys, old).unwrap();
            let new = opened(&only_new, new).unwrap();
            assert_eq!(old.data.mac(&[b"x"]), new.data.mac(&[b"x"]));
            assert_eq!(old.chain.mac(&[b"x"]), new.chain.mac(&[b"x"]));
        }
        let third = fixture.beside(&only_new).await;
        sound(&third, None).await;
        for id in publishers {
            sound(&third, Some(id)).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_row_stays_and_stops_nobody() {
    for fixture in engines().await {
        let mut ids = Vec::new();
        for at in 0..4 {
            ids.push(fixture.publisher(&format!("p{at}")).await.publisher.id);
        }
        // Identifiers of the same millisecond are in no particular order.
        ids.sort_by_key(|id| id.uuid());
        let change = |id: PublisherId, column, value: sea_orm::Value| {
            owner_keys::Entity::update_many()
                .col_expr(column, Expr::value(value))
                .filter(owner_keys::Column::OwnerId.eq(id.uuid()))
        };
        let damage = &[
            change(ids[1], owner_keys::Column::ChainKey, vec![1_u8; 73].into()),
            change(ids[2], owner_keys::Column::MasterKeyId, "gone".into()),
        ];
        let damaged = fixture.store.write(|tx| async move {
            for one in damage {
                one.clone().exec(tx.db()).await?;
            }
            Ok(())
        });
        damaged.await.unwrap();
        let closed = |id, master: &str, known| ClosedKeys {
            publisher: Some(id),
            master_key_id: master.to_owned(),
            known,
        };
        let both = vec![closed(ids[1], "test", true), closed(ids[2], "gone", false)];

        let survey = survey_keys(&fixture.url, &fixture.keys).await.unwrap();
        assert_eq!(survey.closed, both);
        assert_eq!(survey.in_force.as_deref(), Some("test"));
        assert_eq!(survey.owners["test"], 4);
        assert_eq!(survey.owners["gone"], 1);

        let keys = fixture.keys.with_fresh_first("new").unwrap();
        let other = fixture.beside(&keys).await;
        for limit in [1, 100] {
            let expected = if limit == 1 { 3 } else { 0 };
            let found = rewrap(&other, limit, false).await;
            assert_eq!(found, (expected, 0, both.clone()));
        }
        let survey = survey_keys(&fixture.url, &keys).await.unwrap();
        assert_eq!(survey.closed, both);
        assert_eq!(survey.owners["new"], 3);
    }
}

#[tokio::test]
async fn new_owners_get_the_key_in_force_and_a_process_learns_it() {
    for fixture in engines().await {
        let keys = fixture.keys.with_fresh_first("new").unwrap();
        let other = fixture.beside(&keys).await;
        // The first key of its list is not in force yet, so a process without it still works.
        create(&other, "early").await.unwrap();
        assert_eq!(wrapped_by(&other).await, BTreeSet::from(["test".into()]));
        rewrap(&other, 100, false).await;

        let refused = create(&fixture.store, "late").await.unwrap_err();
        assert!(refused.to_string().contains("\"new\""), "{refused}");
        let missing: KeySource = Arc::new(|| Err("it is gone".to_owned()));
        let source: KeySource = Arc::new(move || Ok(keys.without("test").unwrap()));
        let third = fixture.beside(&source().unwrap()).await;
        let system = fixture.store.system();
        system.operations().reread_master_keys_from(source);
        system.operations().reread_master_keys_from(missing);
        create(&fixture.store, "late").await.unwrap();
        assert_eq!(wrapped_by(&other).await, BTreeSet::from(["new".into()]));
        // It still knows its first key, and the others can open what it has sealed.
        assert!(fixture.store.inner.keys.master().knows("test"));
        sound(&third, None).await;
        fixture.store.inner.keys.forget_all();
        for row in rows(&fixture.store).await {
            let db = fixture.store.read();
            assert!(
                fixture
                    .store
                    .inner
                    .keys
                    .find(db, row.owner_id)
                    .await
                    .is_ok()
            );
        }
    }
}

async fn delete(fixture: &Fixture, id: PublisherId, slug: &str) {
    let (system, context) = (fixture.store.system(), context());
    let publishers = system.publishers();
    let deleted = publishers.delete_publisher(&context, id, slug, None, |()| no_content());
    deleted.await.unwrap();
}

#[tokio::test]
async fn moves_creations_and_removals_at_once_leave_every_key_open() {
    for fixture in engines().await {
        let mut gone = Vec::new();
        for at in 0..20 {
            let id = fixture.publisher(&format!("p{at}")).await.publisher.id;
            if at % 4 == 0 {
                delete(&fixture, id, &format!("p{at}")).await;
                gone.push(id);
            }
        }
        fixture.clock.advance(7 * DAY);
        let cutoff = fixture.store.now().minus(7 * DAY);
        let keys = fixture.keys.with_fresh_first("new").unwrap();
        let (one, two) = (fixture.beside(&keys).await, fixture.beside(&keys).await);
        let third = fixture.beside(&keys).await;
        let creations = async {
            for at in 0..10 {
                create(&third, &format!("q{at}")).await.unwrap();
            }
        };
        let removals = async {
            let system = fixture.store.system();
            while system
                .operations()
                .sweep_publishers(cutoff, 2)
                .await
                .unwrap()
                > 0
            {}
        };
        let (a, b, (), ()) = tokio::join!(
            rewrap(&one, 2, false),
            rewrap(&two, 3, false),
            creations,
            removals
        );
        assert_eq!((&a.2, &b.2), (&vec![], &vec![]));
        // Keys that a creation wrapped before the operator's row was moved were moved, too.
        assert_eq!(wrapped_by(&one).await, BTreeSet::from(["new".into()]));
        let told: u64 = told(&one).await.iter().sum();
        assert_eq!(told, a.0 + b.0);
        let left = rows(&one).await;
        assert_eq!(left.len(), 1 + 15 + 10);
        let only_new = keys.without("test").unwrap();
        assert!(left.iter().all(|row| opened(&only_new, row).is_ok()));
        assert!(left.iter().all(|row| {
            let id = PublisherId::from_uuid(row.owner_id);
            !gone.contains(&id)
        }));
    }
}

#[tokio::test]
async fn destroyed_keys_are_forgotten_here_and_elsewhere() {
    for fixture in engines().await {
        let id = fixture.publisher("gone").await.publisher.id;
        let owner = id.uuid();
        let other = fixture.beside(&fixture.keys).await;
        let rings = [&fixture.store, &other].map(|store| &store.inner.keys);
        for store in [&fixture.store, &other] {
            store.poll_credential_changes().await.unwrap();
        }
        for ring in rings {
            ring.of(fixture.store.read(), owner).await.unwrap();
            assert!(ring.cache.contains_key(&owner));
        }
        // Read before the keys were destroyed, by a caller that is slow to cache them.
        let late = rings[0].of(fixture.store.read(), owner).await.unwrap();
        let generation = rings[0].generation.load(Ordering::SeqCst);

        delete(&fixture, id, "gone").await;
        fixture.clock.advance(7 * DAY);
        let cutoff = fixture.store.now().minus(7 * DAY);
        let system = fixture.store.system();
        system
            .operations()
            .sweep_publishers(cutoff, 1)
            .await
            .unwrap();
        assert!(!rings[0].cache.contains_key(&owner));
        let kept = u64::try_from(rings[0].cache.iter().count()).unwrap();
        assert_eq!(rings[0].cache.entry_count(), kept, "wiped, not only hidden");
        rings[0].keep(owner, &late, generation);
        assert!(!rings[0].cache.contains_key(&owner), "too late");

        other.poll_credential_changes().await.unwrap();
        assert!(!rings[1].cache.contains_key(&owner));
        assert!(rings[1].of(other.read(), owner).await.is_err());
    }
}

/// If a process was disconnected until the log of changes was swept, it does not know whose keys
/// were destroyed.
#[tokio::test]
async fn after_a_gap_in_the_log_nobody_s_keys_are_believed() {
    for fixture in engines().await {
        let owner = fixture.publisher("acme").await.publisher.id.uuid();
        let ring = &fixture.store.inner.keys;
        ring.of(fixture.store.read(), owner).await.unwrap();
        let ahead = "UPDATE cache_epoch SET epoch = epoch + 100";
        fixture.execute(ahead).await;
        fixture.publisher("other").await;
        let other = fixture.publisher("third").await.publisher.id;
        let store = &fixture.store;
        let changed = store.write(|tx| async move {
            tx.touches_credentials_of(other);
            publish_credential_changes(&tx).await
        });
        changed.await.unwrap();
        store.poll_credential_changes().await.unwrap();
        assert!(!ring.cache.contains_key(&owner));
    }
}
