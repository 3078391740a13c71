// SPDX-License-Identifier: Apache-2.0
//! Memory that is given back holds nothing of what was in it: for programs whose libraries keep keys and do not wipe them.

use std::alloc::{GlobalAlloc, Layout, System};

/// An allocator that wipes what is given back. It costs as much as clearing it: nothing on a path where nothing is allocated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wiping<A = System>(A);

impl Wiping {
    /// Over the system's allocator, for `#[global_allocator]`.
    pub const fn new() -> Self {
        Self(System)
    }
}

// SAFETY: all memory is the inner allocator's, asked for and given back with the same layouts; a block is written to only before it
// is given back, and only within its layout. What is grown or shrunk is moved (the trait's own `realloc`), so the old block is wiped too.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same. (Fresh pages of the kernel's stay untouched.)
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's until it is given back, `layout.size()` bytes long, and nobody else refers to it.
        unsafe { wipe(block, layout.size()) };
        // SAFETY: the caller keeps the contract of `dealloc`, which is the same.
        unsafe { self.0.dealloc(block, layout) }
    }
}

/// # Safety
/// `block` is valid for writes of `length` bytes.
unsafe fn wipe(block: *mut u8, length: usize) {
    // SAFETY: as of this function. Unlike memset(3), it is never left out because nobody reads the block again.
    unsafe { libc::explicit_bzero(block.cast(), length) };
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Looks at what it is given back.
    #[derive(Default)]
    struct Looking(RefCell<Vec<Vec<u8>>>);

    // SAFETY: all is the system's allocator's; a block is read before it is given back.
    unsafe impl GlobalAlloc for Looking {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the same contract. Blocks begin filled, so that all of them may be read.
            let block = unsafe { System.alloc_zeroed(layout) };
            // SAFETY: the block has so many bytes.
            unsafe { block.write_bytes(0xaa, layout.size()) };
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the block is `layout.size()` bytes long, initialised by `alloc`, and nobody writes to it now.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            self.0.borrow_mut().push(bytes.to_vec());
            // SAFETY: the same contract.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[test]
    fn what_is_given_back_or_moved_is_wiped_and_what_is_kept_is_not() {
        let wiping = Wiping(Looking::default());
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the block is used within its layout, moved to one of 300 bytes, and given back with that.
        unsafe {
            let block = wiping.alloc(layout);
            block.write_bytes(7, 100);
            let moved = wiping.realloc(block, layout, 300);
            assert!(std::slice::from_raw_parts(moved, 100).iter().all(|byte| *byte == 7));
            wiping.dealloc(moved, Layout::from_size_align(300, 8).unwrap());
        }
        assert_eq!(*wiping.0.0.borrow(), [vec![0; 100], vec![0; 300]]);
    }
}
