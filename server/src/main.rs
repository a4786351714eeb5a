//! The program. All code is in the library of this crate.

/// An allocator that returns memory to the system after a burst (ADR 0033).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    server::core_dumps::forbid();
    server::cli::run()
}
