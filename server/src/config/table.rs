//! The table of settings. To add one, add a row; `stationmaster config --docs` and
//! `--env-example` write the two files that follow from it.

use super::{
    Secrecy::{Open, Secret, Url},
    Setting, SettingError, Values,
    forms::{
        Address, BootstrapTokens, Cron, DatabaseLocation, FilePath, Form, Keys, LegacyToken,
        LogFilter, LogLines, Maybe, Networks, Retries, Switch, SynchronousFull, Whole,
    },
};

/// Reads one setting. A secret's text appears in no fault: its form sees to that.
fn read<F: Form>(values: &Values, name: &str, faults: &mut Vec<SettingError>) -> Option<F::Value> {
    let setting = super::find(name)?;
    match F::read(values.text(setting)) {
        Ok(value) => Some(value),
        Err(wrong) => {
            faults.push(SettingError::new(
                name,
                format!("{wrong}; it takes {}", F::takes()),
            ));
            None
        }
    }
}

/// Makes, from rows `field: Form = "NAME", "default" ("its words"), secrecy, "meaning";`, the type
/// [`Config`], the list [`SETTINGS`] and the function that fills the one by the other.
macro_rules! settings {
    ($( $section:literal { $(
        $field:ident: $form:ty = $name:literal, $default:literal ($words:literal), $secrecy:ident,
        $meaning:literal;
    )* } )*) => {
        /// The configuration, every value checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($( #[doc = $meaning] pub $field: <$form as Form>::Value, )*)*
        }

        /// All settings, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[
            $($( Setting {
                name: $name,
                section: $section,
                default: $default,
                default_words: $words,
                secrecy: $secrecy,
                meaning: $meaning,
                takes: <$form as Form>::takes,
            }, )*)*
        ];

        /// Reads every setting; `None` if any has a fault.
        pub(super) fn build(values: &Values, faults: &mut Vec<SettingError>) -> Option<Config> {
            $($( let $field = read::<$form>(values, $name, faults); )*)*
            Some(Config { $($( $field: $field?, )*)* })
        }
    };
}

settings! {
    "Listening" {
        listen: Address = "STATIONMASTER_LISTEN", "127.0.0.1:8080" (""), Open,
            "Where the API listens. Port 0 picks a free one; the first line on standard output names it.";
        max_connections: Whole<1, 1_000_000> = "STATIONMASTER_MAX_CONNECTIONS", "10000" (""), Open,
            "How many HTTP connections may be open at once, or fewer if the limit of open files is lower. For more, those that have been idle for longest are closed. One address has half of them.";
        trusted_proxies: Networks = "STATIONMASTER_TRUSTED_PROXIES", "" ("none"), Open,
            "Networks whose forwarded headers count when a client's address is worked out. Anybody else's are ignored.";
        metrics_listen: Maybe<Address> = "STATIONMASTER_METRICS_LISTEN", "127.0.0.1:9464" (""), Open,
            "Where `/metrics` is served, on a port of its own. Set it to nothing to turn it off. A taken port is a failure when the setting is given, and a warning when it is not.";
    }
    "Storage" {
        data_dir: FilePath = "STATIONMASTER_DATA_DIR", "./data" (""), Open,
            "The directory for the embedded database, the key file, the bootstrap token's file and the lock. Made with mode 0700. Not used with PostgreSQL.";
        database_url: Maybe<DatabaseLocation> = "STATIONMASTER_DATABASE_URL", "" ("`sqlite://stationmaster.db`"), Url,
            "The store. A relative SQLite path lies in the data directory.";
        database_connections: Whole<2, 1_000> = "STATIONMASTER_DATABASE_CONNECTIONS", "20" (""), Open,
            "The most connections to PostgreSQL that requests of one process share, beside ten of its own: the write lane, the dispatcher, notifications, jobs, polls. A start needs all of them.";
        database_timeout_seconds: Whole<1, 600> = "STATIONMASTER_DATABASE_TIMEOUT_SECONDS", "10" (""), Open,
            "How long an answer of the database is waited for, in seconds. What takes longer is given up, its connection to PostgreSQL is closed, and the request is answered 503. Migrations take as long as they take.";
        sqlite_synchronous_full: SynchronousFull = "STATIONMASTER_SQLITE_SYNCHRONOUS", "full" (""), Open,
            "`full`: an answered change survives a power cut. `normal`: it survives a crash of the process, and a power cut may take back the last changes.";
        write_batch_max: Whole<1, 256> = "STATIONMASTER_WRITE_BATCH_MAX", "256" (""), Open,
            "The most changes of runs that share one commit. 1 commits each by itself, which is only good for measuring.";
    }
    "Operator's credentials" {
        bootstrap_tokens: Maybe<BootstrapTokens> = "STATIONMASTER_BOOTSTRAP_TOKEN", "" ("made at the first start, in the file `bootstrap-token` of the data directory"), Secret,
            "The operator's token. Both of two are valid, which is how it is rotated. Must be given with PostgreSQL.";
        master_keys: Maybe<Keys> = "STATIONMASTER_MASTER_KEYS", "" ("made at the first start, in the file `master-keys` of the data directory"), Secret,
            "The keys under which stored secrets are sealed. Must be given with PostgreSQL, here or by file. Without them the secrets in the store are lost.";
        master_keys_file: Maybe<FilePath> = "STATIONMASTER_MASTER_KEYS_FILE", "" ("unset"), Open,
            "A file that holds the master keys, in place of `STATIONMASTER_MASTER_KEYS`. A running server reads it again when it meets a key that it does not know.";
        legacy_token: Maybe<LegacyToken> = "STATIONMASTER_LEGACY_TOKEN", "" ("unset"), Secret,
            "A token that clients share already. It becomes an admin and runner token of a demo publisher, so that they can move over one by one. See docs/auth.md.";
    }
    "Webhooks" {
        allow_http_destinations: Switch = "STATIONMASTER_ALLOW_HTTP_DESTINATIONS", "false" (""), Open,
            "Whether publishers may give plain `http` URLs. For tests and private networks.";
        allowed_destinations: Networks = "STATIONMASTER_ALLOWED_DESTINATIONS", "" ("none"), Open,
            "Networks that webhooks, subcommands and Slack messages may reach although they are not public, such as 127.0.0.0/8.";
        retry_schedule: Retries = "STATIONMASTER_RETRY_SCHEDULE", "5s,5m,30m,2h,5h,10h,10h" (""), Open,
            "Waits before the second, third and further tries of a delivery. Each is spread by a fifth to either side.";
        disable_endpoint_after_days: Whole<1, 365> = "STATIONMASTER_DISABLE_ENDPOINT_AFTER_DAYS", "5" (""), Open,
            "Days of nothing but failures after which a webhook endpoint is disabled. Its publisher is told after one.";
    }
    "Runs" {
        claim_wait_max_seconds: Whole<0, 60> = "STATIONMASTER_CLAIM_WAIT_MAX_SECONDS", "60" (""), Open,
            "The longest that a claim waits for runs, in seconds. Set it below the idle time-out of a proxy in front; a claim that asks for more is answered after this.";
    }
    "Rate limits" {
        rate_limit_per_second: Whole<0, 1_000_000> = "STATIONMASTER_RATE_LIMIT_PER_SECOND", "1000" (""), Open,
            "Requests a second for each publisher, with bursts of twice that. Counted in each process. 0 turns it off.";
        bootstrap_rate_per_minute: Whole<0, 1_000_000> = "STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE", "60" (""), Open,
            "Requests a minute with a bootstrap token. Failed ones are held to 5 a minute for each address. 0 turns both off.";
        auth_failures_per_minute: Whole<0, 1_000_000> = "STATIONMASTER_AUTH_FAILURES_PER_MINUTE", "60" (""), Open,
            "Failed authentications a minute for each address (each /64 network with IPv6). 0 turns it off.";
    }
    "Retention and scheduled work" {
        retention_credentials_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_CREDENTIALS_DAYS", "30" (""), Open,
            "How long expired and revoked credentials and endpoint secrets stay listed, in days.";
        retention_events_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_EVENTS_DAYS", "30" (""), Open,
            "How long events are kept, in days.";
        retention_deliveries_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_DELIVERIES_DAYS", "30" (""), Open,
            "How long finished deliveries with their attempts, finished replays and deleted endpoints are kept, in days.";
        retention_runs_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_RUNS_DAYS", "90" (""), Open,
            "How long finished runs are kept at most, in days. A pipeline may ask for less. Deleted pipelines and superseded versions are kept as long, and until no run names them.";
        retention_notices_days: Whole<1, 36_500> = "STATIONMASTER_RETENTION_NOTICES_DAYS", "7" (""), Open,
            "How long Slack messages about trains are kept after they were sent or given up, in days.";
        cron_leases: Cron = "STATIONMASTER_CRON_LEASES", "*/10 * * * * *" (""), Open,
            "When runs whose lease ran out are taken back.";
        cron_endpoints: Cron = "STATIONMASTER_CRON_ENDPOINTS", "*/15 * * * * *" (""), Open,
            "When webhook endpoints are looked at: to disable those that failed for too long, and to tell of those that fail or work again.";
        cron_accounts: Cron = "STATIONMASTER_CRON_ACCOUNTS", "*/5 * * * * *" (""), Open,
            "When OAuth accounts whose tokens near their end are refreshed, and logins that nobody finished within 10 minutes removed.";
        cron_idempotency_keys: Cron = "STATIONMASTER_CRON_IDEMPOTENCY_KEYS", "30 * * * * *" (""), Open,
            "When stored answers that hold a credential are wiped after their 10 minutes, and idempotency keys removed after their 24 hours.";
        cron_credentials: Cron = "STATIONMASTER_CRON_CREDENTIALS", "0 11 1 * * *" (""), Open,
            "When expired and revoked credentials and endpoint secrets past their retention are removed.";
        cron_deliveries: Cron = "STATIONMASTER_CRON_DELIVERIES", "0 23 2 * * *" (""), Open,
            "When finished deliveries, replays and deleted endpoints past their retention are removed, and pending deliveries to deleted endpoints called off.";
        cron_events: Cron = "STATIONMASTER_CRON_EVENTS", "0 41 2 * * *" (""), Open,
            "When events past their retention are removed.";
        cron_runs: Cron = "STATIONMASTER_CRON_RUNS", "0 19 3 * * *" (""), Open,
            "When finished runs, deleted pipelines and superseded versions past their retention are removed.";
        cron_notices: Cron = "STATIONMASTER_CRON_NOTICES", "0 37 3 * * *" (""), Open,
            "When Slack messages about trains past their retention are removed.";
        cron_publishers: Cron = "STATIONMASTER_CRON_PUBLISHERS", "0 53 3 * * *" (""), Open,
            "When publishers that were deleted more than 7 days ago are destroyed for good.";
    }
    "Logging" {
        log: LogFilter = "STATIONMASTER_LOG", "info" (""), Open,
            "Which log lines are written to standard error. The store's statements stay out unless `sqlx` or `sea_orm` is named.";
        log_format: Maybe<LogLines> = "STATIONMASTER_LOG_FORMAT", "" ("`text` on a terminal, else `json`"), Open,
            "How log lines look.";
    }
}
