//! Forbids core dumps, because the memory of this process contains keys and credentials.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Forbids core dumps in two ways. The resource limit works where dumps are written to files. Where
/// dumps are piped to a program (core(5)), a process that is not dumpable is left out. A failure is
/// only reported.
pub fn forbid() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    let limited = limited.and_then(|()| {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
    });
    if let Err(error) = limited {
        eprintln!("warning: core dumps can't be forbidden: {error}");
    }
}
