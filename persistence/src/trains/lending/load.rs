//! Reads all trains and accounts of a publisher, and opens the credentials.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicI64},
};

use domain::{
    Timestamp,
    account::{Ceilings, Credential, CredentialType, UpstreamHeader},
    id::{AccountId, Id as _},
    seal::Key,
};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use super::{ResolvedAccount, Snapshot, Tenant, Train};
use crate::{
    store::{
        Store,
        entity::{accounts, train_accounts, trains},
        error::{Result, corrupt_row},
        scope::Scope,
        unreadable,
    },
    trains::accounts::sealed_for,
};

/// Bytes that a train, or an account's membership in one, takes in memory besides its texts.
const ENTRY_BYTES: usize = 128;
/// Bytes that an account takes in memory besides its texts.
const ACCOUNT_BYTES: usize = 512;

impl Store {
    /// Reads the snapshot of a publisher, and returns it with its approximate size in bytes. Also
    /// reads the cooldowns, and the usage of accounts with ceilings.
    pub(super) async fn read_snapshot(
        &self,
        scope: &Scope,
        tenant: &Tenant,
    ) -> Result<(Snapshot, u32)> {
        let owner = scope.uuid();
        let trains = trains::Entity::find()
            .filter(trains::Column::PublisherId.eq(owner))
            .all(self.read())
            .await?;
        let places = train_accounts::Entity::find()
            .filter(train_accounts::Column::PublisherId.eq(owner))
            .all(self.read())
            .await?;
        let rows = accounts::Entity::find()
            .filter(accounts::Column::PublisherId.eq(owner))
            .all(self.read())
            .await?;
        let keys = self.inner.keys.of(self.read(), owner).await?;
        let mut accounts = HashMap::with_capacity(rows.len());
        for row in rows {
            let id = row.id;
            match open(row, scope, &keys.data) {
                Ok(account) => {
                    accounts.insert(id, Arc::new(account));
                }
                // The other accounts are still lent.
                Err(error) => unreadable::report("account", owner, id, &error),
            }
        }
        self.read_cooldowns(tenant).await?;
        let has_ceilings = accounts
            .values()
            .any(|account| account.ceilings != Ceilings::default());
        if has_ceilings {
            self.read_usage(tenant, &accounts).await?;
        }
        let bytes = bytes_of(&trains, &places, &accounts);
        let snapshot = Snapshot {
            trains: assemble(trains, places, &accounts)?,
            has_ceilings,
        };
        Ok((snapshot, bytes))
    }
}

fn assemble(
    trains: Vec<trains::Model>,
    places: Vec<train_accounts::Model>,
    accounts: &HashMap<Uuid, Arc<ResolvedAccount>>,
) -> Result<HashMap<Uuid, Train>> {
    let mut by_train: HashMap<Uuid, BTreeMap<(u16, AccountId), Arc<ResolvedAccount>>> =
        HashMap::new();
    for place in places {
        // The account was removed between two of these reads. The change will invalidate this
        // snapshot.
        let Some(account) = accounts.get(&place.account_id) else {
            continue;
        };
        let priority = u16::try_from(place.priority).map_err(|_| corrupt_row("priority"))?;
        by_train
            .entry(place.train_id)
            .or_default()
            .insert((priority, account.id), Arc::clone(account));
    }
    let train_of = |row: trains::Model| {
        let members = by_train.remove(&row.id).unwrap_or_default();
        let train = Train {
            slug: row.slug,
            enabled: row.enabled,
            sticky: row.sticky,
            told_ms: AtomicI64::new(row.exhausted_at.unwrap_or(0)),
            accounts: members
                .into_iter()
                .map(|((priority, _), account)| (priority, account))
                .collect(),
        };
        (row.id, train)
    };
    Ok(trains.into_iter().map(train_of).collect())
}

/// Opens an account's credential. If it does not open, the account is not lent, and the others
/// still are.
fn open(row: accounts::Model, scope: &Scope, key: &Key) -> Result<ResolvedAccount> {
    let id = AccountId::from_uuid(row.id);
    let kind = CredentialType::parse(&row.credential_type)
        .ok_or_else(|| corrupt_row("type of credential"))?;
    let opened = Credential::open(key, &sealed_for(&row), &row.sealed);
    if opened.is_err() {
        let publisher = scope.publisher();
        tracing::error!(%publisher, account = %id, "an account is not lent: its credential does not open");
    }
    let header = UpstreamHeader {
        name: row.header_name,
        scheme: row.header_scheme,
    };
    let ceilings = row.ceilings.as_deref().map(serde_json::from_str);
    // A token that does not open has no time left.
    let expires_at = row.expires_at.filter(|_| opened.is_ok());
    Ok(ResolvedAccount {
        id,
        healthy: row.health == "ok" && opened.is_ok(),
        value: opened.map_or_else(
            |_| SecretString::default(),
            |credential| header.value(credential.bearer()),
        ),
        header,
        provider: row.provider,
        base_url: row.base_url,
        expires_at: expires_at.map(Timestamp::from_ms),
        is_oauth: kind == CredentialType::Oauth,
        enabled: row.enabled,
        refreshed_at: row.refreshed_at.map(Timestamp::from_ms),
        ceilings: ceilings
            .transpose()
            .map_err(|_| corrupt_row("account's ceilings"))?
            .unwrap_or_default(),
    })
}

fn bytes_of(
    trains: &[trains::Model],
    places: &[train_accounts::Model],
    accounts: &HashMap<Uuid, Arc<ResolvedAccount>>,
) -> u32 {
    let of_account = |account: &Arc<ResolvedAccount>| {
        ACCOUNT_BYTES
            + account.value.expose_secret().len()
            + account.provider.len()
            + account.base_url.len()
    };
    let accounts: usize = accounts.values().map(of_account).sum();
    let trains: usize = trains.iter().map(|row| ENTRY_BYTES + row.slug.len()).sum();
    let bytes = accounts + trains + places.len() * ENTRY_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
