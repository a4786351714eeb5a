//! People: users, how they prove who they are, their sessions, and the mails that they get.
//!
//! These rows belong to no publisher, so they are reached through a handle of their own. Memberships
//! and invitations belong to publishers: see the plane `publishers`.

pub(crate) mod mails;
pub(crate) mod passkeys;
pub(crate) mod passwords;
pub(crate) mod providers;
pub(crate) mod sessions;
pub(crate) mod sign_in;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod throttles;
pub(crate) mod tokens;
pub(crate) mod users;

use std::future::Future;

use domain::id::{Id as _, PublisherId, UserId};
use uuid::Uuid;

use crate::store::{
    Store,
    change::{Audited, Context},
    db::Tx,
    error::Result,
    freshness::publish_credential_changes,
};

/// Whose share of the writer people's changes use: that of no publisher, and not the operator's.
const PEOPLE: Uuid = Uuid::max();

/// The store for people's own rows. It reaches no publisher's.
#[derive(Clone)]
pub struct Identity {
    pub(crate) store: Store,
}

impl Store {
    /// The store for people's own rows. A test lists who may call this.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            store: self.clone(),
        }
    }
}

impl Identity {
    /// Makes a change of people's rows: audited, and in one transaction with its mails and with the
    /// notice that invalidates what other processes cache.
    pub(crate) async fn change<T, F, W>(&self, context: &Context, work: F) -> Result<T>
    where
        T: Send,
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<Audited<T>>> + Send,
    {
        let (store, work) = (&self.store, &work);
        self.store
            .write_for(PEOPLE, |tx| async move {
                tx.made_by(&context.actor);
                let audited = work(Tx::clone(&tx)).await?;
                publish_credential_changes(&tx).await?;
                let (value, entries) = audited.into_parts();
                store.append_audit(&tx, context, entries).await?;
                Ok(value)
            })
            .await
    }
}

/// Notes that what is cached of a user changes in this transaction. Users share the log of changes
/// with publishers: their identifiers are as unique.
pub(crate) fn touch(tx: &Tx, user: UserId) {
    tx.touches_credentials_of(PublisherId::from_uuid(user.uuid()));
}
