//! All tables, in the order in which a publisher's rows can be removed.

use crate::store::{
    ends::{Declared, End, Table, WITH_PUBLISHER},
    entity,
};

/// A table that is only used in raw SQL.
macro_rules! table {
    ($name:literal, $owner:literal, [$($key:literal),+], $ends:expr) => {
        Table { name: $name, owner: Some($owner), key: || vec![$($key),+], ends: $ends }
    };
}

const DISPATCH_LEASES: Table = table!(
    "dispatch_leases",
    "publisher_id",
    ["publisher_id", "endpoint_id"],
    &[End::With("webhook_endpoints"), WITH_PUBLISHER]
);
const ENDPOINT_SEQUENCES: Table = table!(
    "endpoint_sequences",
    "publisher_id",
    ["publisher_id", "endpoint_id"],
    &[End::With("webhook_endpoints"), WITH_PUBLISHER]
);
const FAN_OUT_SEQUENCES: Table = table!(
    "fan_out_sequences",
    "publisher_id",
    ["publisher_id"],
    &[WITH_PUBLISHER]
);
const STORAGE_USAGE: Table = table!(
    "storage_usage",
    "publisher_id",
    ["publisher_id"],
    &[WITH_PUBLISHER]
);

const fn of<E: Declared>() -> Table {
    E::TABLE
}

/// Every table. A table comes before those that it refers to, so that rows can be removed in this
/// order.
pub(crate) const TABLES: [Table; 49] = [
    of::<entity::delivery_attempts::Entity>(),
    of::<entity::deliveries::Entity>(),
    of::<entity::replays::Entity>(),
    of::<entity::endpoint_health::Entity>(),
    of::<entity::endpoint_stats::Entity>(),
    of::<entity::endpoint_secrets::Entity>(),
    of::<entity::fan_outs::Entity>(),
    FAN_OUT_SEQUENCES,
    of::<entity::events::Entity>(),
    of::<entity::event_types::Entity>(),
    DISPATCH_LEASES,
    ENDPOINT_SEQUENCES,
    of::<entity::webhook_endpoints::Entity>(),
    of::<entity::run_timeline::Entity>(),
    of::<entity::runs::Entity>(),
    of::<entity::pipeline_versions::Entity>(),
    of::<entity::pipelines::Entity>(),
    of::<entity::train_notices::Entity>(),
    of::<entity::oauth_logins::Entity>(),
    of::<entity::train_token_hashes::Entity>(),
    of::<entity::train_tokens::Entity>(),
    of::<entity::train_accounts::Entity>(),
    of::<entity::trains::Entity>(),
    of::<entity::account_cooldowns::Entity>(),
    of::<entity::account_usage::Entity>(),
    of::<entity::accounts::Entity>(),
    of::<entity::token_hashes::Entity>(),
    of::<entity::credentials::Entity>(),
    of::<entity::invitations::Entity>(),
    of::<entity::memberships::Entity>(),
    of::<entity::idempotency_keys::Entity>(),
    of::<entity::audit_events::Entity>(),
    of::<entity::audit_heads::Entity>(),
    of::<entity::owner_keys::Entity>(),
    STORAGE_USAGE,
    of::<entity::publishers::Entity>(),
    of::<entity::credential_changes::Entity>(),
    of::<entity::cache_epoch::Entity>(),
    of::<entity::jobs::Entity>(),
    of::<entity::processes::Entity>(),
    of::<entity::single_use_tokens::Entity>(),
    of::<entity::sessions::Entity>(),
    of::<entity::passkeys::Entity>(),
    of::<entity::user_passwords::Entity>(),
    of::<entity::user_identities::Entity>(),
    of::<entity::user_addresses::Entity>(),
    of::<entity::users::Entity>(),
    of::<entity::mails::Entity>(),
    of::<entity::sign_in_throttles::Entity>(),
];

#[cfg(test)]
mod tests;
