//! The names of scheduled jobs.

/// Writes the jobs down once: their names in the store, in logs and in metrics.
macro_rules! jobs {
    ($($(#[$doc:meta])* $job:ident = $name:literal,)+) => {
        /// Work that is done on a schedule, by one process at a time.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Job {
            $($(#[$doc])* $job,)+
        }

        impl Job {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$job),+];

            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$job => $name,)+ }
            }

            /// The name of its part in the process's progress.
            #[must_use]
            pub const fn part(self) -> &'static str {
                match self { $(Self::$job => concat!("job_", $name),)+ }
            }
        }
    };
}

jobs! {
    /// Removes dead credentials, and what else is soon of no use to anybody.
    Credentials = "credentials",
    /// Wipes answers that hold a credential, and removes stale idempotency keys.
    IdempotencyKeys = "idempotency_keys",
    /// Removes old deliveries and replays, and endpoints that were deleted long ago; calls
    /// deliveries to deleted endpoints off.
    Deliveries = "deliveries",
    /// Removes old events.
    Events = "events",
    /// Removes old runs, and pipelines and versions of them that no run names any more.
    Runs = "runs",
    /// Removes publishers that were deleted long ago, with all that they had.
    Publishers = "publishers",
    /// Takes runs back whose lease ran out.
    Leases = "leases",
    /// Looks at endpoints: those that fail, and those that work again.
    Endpoints = "endpoints",
    /// Removes old messages about trains.
    Notices = "notices",
    /// Refreshes accounts whose tokens near their end.
    Accounts = "accounts",
}
