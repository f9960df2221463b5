//! The command line; everything else is in the library.

use std::process::ExitCode;

/// Takes and gives back the buffers of bulk data without asking the kernel each
/// time, which costs more than what is done with them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Each thread's few kilobytes would take whole pages of two megabytes.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    mbcopy::cli::main()
}
