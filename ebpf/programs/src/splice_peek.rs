//! Looking at sockets as this kernel lays them out.
//!
//! An address may be that of a socket that is gone. What is read then is garbage, and at worst a message is given to
//! the socket with the right cookie at a moment that is not the best, or, if there is none any more, to TCP.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use warren_ebpf_abi::SpliceLayout;

/// Filled in by the loader from the kernel's type information.
#[unsafe(no_mangle)]
static SPLICE_LAYOUT: SpliceLayout = SpliceLayout {
    state: 0,
    shutdown: 0,
    socket: 0,
    file: 0,
    file_flags: 0,
    user_data: 0,
    receive_queue: 0,
    charged: 0,
    buffer: 0,
    locks: 0,
    upper: 0,
    write_seq: 0,
    rcv_nxt: 0,
    multipath: 0,
    delayed: 0,
    queued: 0,
};

/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
/// `O_NONBLOCK`.
const NONBLOCK: u32 = 0o4000;
/// `RCV_SHUTDOWN`, `SEND_SHUTDOWN`.
const RECEIVE_SHUT: u8 = 1;
const SEND_SHUT: u8 = 2;
/// `SOCK_RCVBUF_LOCK`: the application has set the size of its receive buffer.
const RECEIVE_BUFFER_LOCK: u8 = 2;
/// Flags in the low bits of a socket's user data; one says that it is a psock.
const USER_DATA_FLAGS: u64 = 7;
const IS_PSOCK: u64 = 4;

fn layout() -> SpliceLayout {
    // SAFETY: the static is valid; reading it so keeps the compiler from believing the zeros above.
    unsafe { (&raw const SPLICE_LAYOUT).read_volatile() }
}

/// A socket somewhere in the kernel's memory.
#[derive(Clone, Copy)]
pub(crate) struct Peek(u64);

impl Peek {
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn read<T>(self, offset: u32) -> Option<T> {
        // SAFETY: the helper reads kernel memory at any address, or fails.
        unsafe { bpf_probe_read_kernel((self.0 + u64::from(offset)) as *const T) }.ok()
    }

    /// Whether the socket is a plain one: neither of Multipath TCP nor with a protocol on top.
    #[inline(always)]
    pub(crate) fn is_plain(self) -> bool {
        let layout = layout();
        self.read::<u64>(layout.upper) == Some(0) && self.read::<u8>(layout.multipath) == Some(0)
    }

    /// Whether calls on the socket do not wait.
    #[inline(always)]
    pub(crate) fn is_nonblocking(self) -> bool {
        self.file_flags().is_some_and(|flags| flags & NONBLOCK != 0)
    }

    #[inline(always)]
    fn file_flags(self) -> Option<u32> {
        let layout = layout();
        let socket = self.read::<u64>(layout.socket).filter(|socket| *socket != 0)?;
        let file = Self(socket).read::<u64>(layout.file).filter(|file| *file != 0)?;
        Self(file).read(layout.file_flags)
    }

    /// Whether the socket listens.
    #[inline(always)]
    pub(crate) fn is_listening(self) -> bool {
        self.read::<u8>(layout().state) == Some(LISTEN)
    }

    /// Whether the socket's receive buffer is smaller than `size`, and not because the application wants it so.
    #[inline(always)]
    pub(crate) fn may_receive_more(self, size: u32) -> bool {
        let layout = layout();
        let is_free = self.read::<u8>(layout.locks).is_some_and(|locks| locks & RECEIVE_BUFFER_LOCK == 0);
        is_free && self.read::<u32>(layout.buffer).is_some_and(|buffer| buffer < size)
    }

    /// If the socket may still send, the sequence number behind everything that it has given to TCP.
    #[inline(always)]
    pub(crate) fn sending(self) -> Option<u32> {
        let layout = layout();
        let state = self.read::<u8>(layout.state)?;
        let shut = self.read::<u8>(layout.shutdown)?;
        // An option hook refuses protocols on top; should it be missing, this one at least is not undermined.
        let has_upper = self.read::<u64>(layout.upper)? != 0;
        if !matches!(state, ESTABLISHED | CLOSE_WAIT) || shut & SEND_SHUT != 0 || has_upper {
            return None;
        }
        self.read(layout.write_seq)
    }

    /// How many bytes may be put into the socket's queue, if everything that was sent before `sequence` is in it.
    #[inline(always)]
    pub(crate) fn room_behind(self, sequence: u32) -> Option<Room> {
        let layout = layout();
        let state = self.read::<u8>(layout.state)?;
        let shut = self.read::<u8>(layout.shutdown)?;
        if !matches!(state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2) || shut & RECEIVE_SHUT != 0 {
            return None;
        }
        // What arrives before the socket is accepted stays in TCP's queue.
        if self.read::<u64>(layout.socket)? == 0
            || self.read::<u32>(layout.rcv_nxt)? != sequence
            || self.read::<u32>(layout.receive_queue)? != 0
        {
            return None;
        }
        let user_data = self.read::<u64>(layout.user_data)?;
        if user_data & IS_PSOCK == 0 {
            return None;
        }
        let psock = Self(user_data & !USER_DATA_FLAGS);
        if psock.read::<u32>(layout.delayed)? != 0 {
            return None;
        }
        let queued = psock.read::<u32>(layout.queued)?;
        let charged = self.read::<u32>(layout.charged)?;
        let used = if queued > charged { queued } else { charged };
        let share = self.read::<u32>(layout.buffer)? / warren_ebpf_abi::SPLICE_SHARE;
        Some(Room { bytes: share.saturating_sub(used), is_empty: queued == 0 })
    }
}

/// What a receiver can take.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) bytes: u32,
    /// Whether it has read everything.
    pub(crate) is_empty: bool,
}
