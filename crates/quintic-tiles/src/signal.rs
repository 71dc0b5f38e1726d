//! The signal handler: from a fault to a tile operation and back.

use std::cell::{Cell, UnsafeCell};
use std::fmt::{self, Write as _};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Once, OnceLock};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use crate::decode::{self, Address, Base, Instruction};
use crate::tiles::{Refusal, Tiles};

thread_local! {
    // Neither needs to be initialised or dropped, so that the handler reaches them by their
    // addresses alone.
    static STATE: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::new()) };
    static EMULATED: Cell<u64> = const { Cell::new(0) };
}

/// What handled `SIGILL` before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes tile instructions work in this process, all its threads included: in software where
/// the CPU has no tile unit, else by asking Linux for the permission to use it. Later calls do
/// nothing.
///
/// # Panics
///
/// If the system refuses the handler.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        request_permission();
        let mut action = previous(None);
        PREVIOUS.get_or_init(|| action);
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
        action.sa_sigaction = handler as usize;
        // The handler runs on the stack of the thread, which is larger than an alternate one.
        action.sa_flags = libc::SA_SIGINFO;
        previous(Some(&action));
    });
}

/// The instructions of the calling thread that were executed in software; 0 for ever on a CPU
/// with a tile unit.
pub fn emulated() -> u64 {
    EMULATED.get()
}

/// Sets the action for `SIGILL`, if there is one to set, and returns the one before.
fn previous(action: Option<&libc::sigaction>) -> libc::sigaction {
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    let action = action.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the action is null or valid, and the handler it names does what may be done
    // while any instruction of the process is interrupted.
    let result = unsafe { libc::sigaction(libc::SIGILL, action, previous.as_mut_ptr()) };
    assert_eq!(result, 0, "sigaction failed");
    // SAFETY: the call succeeded, so it wrote the action.
    unsafe { previous.assume_init() }
}

/// On a CPU with tiles their first use ends in `SIGILL` too, unless the process has asked for
/// them. Elsewhere the call fails, and nothing depends on it.
fn request_permission() {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and changes nothing but the process's permission.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        );
    }
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes both to a handler installed with SA_SIGINFO, for it alone.
    let (code, machine) = unsafe { ((*info).si_code, &mut *context.cast::<ucontext_t>()) };
    // A code above zero says that an instruction raised the signal, and not a process.
    if code > 0 && execute(machine) {
        EMULATED.set(EMULATED.get() + 1);
    } else {
        pass_on(signal, info, context);
    }
}

/// Gives the signal to what handled it before this crate.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get();
    match previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        // The signal is raised once more when the handler returns to its cause, or is sent
        // again here if a process sent it, and then has its default action. Linux does the
        // same to a fault that is ignored.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain system calls; an action of zeros is the default one.
            unsafe {
                let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler => {
            let with_info = previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
            // SAFETY: the process installed this handler for this signal, and the flag says
            // which of the two types it has.
            unsafe {
                if with_info {
                    let handler = std::mem::transmute::<
                        usize,
                        extern "C" fn(c_int, *mut siginfo_t, *mut c_void),
                    >(handler);
                    handler(signal, info, context);
                } else {
                    std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
                }
            }
        }
    }
}

/// Executes the instruction that the machine stopped at, and moves it behind that. Returns
/// whether it is a tile instruction.
fn execute(machine: &mut ucontext_t) -> bool {
    let registers = &mut machine.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize].cast_unsigned();
    // SAFETY: the CPU has fetched the bytes that are asked for: each is asked for only when
    // those before it say that the instruction goes on.
    let byte = |offset: usize| unsafe { *(at as *const u8).add(offset) };
    let Some((instruction, length)) = decode::decode(byte) else {
        return false;
    };
    let next = at.wrapping_add(length as u64);
    let registers = Registers {
        values: registers,
        next,
    };
    let result = STATE.with(|state| {
        // SAFETY: the state belongs to this thread, and no code but this handler, which is
        // not entered again while it runs, has a reference to it. The instruction's own
        // addresses are the program's responsibility, as without emulation.
        unsafe { apply(instruction, &mut *state.get(), &registers) }
    });
    if let Err(refusal) = result {
        refuse(instruction, at, refusal);
    }
    machine.uc_mcontext.gregs[libc::REG_RIP as usize] = next.cast_signed();
    true
}

/// The general registers of the interrupted program.
struct Registers<'a> {
    values: &'a [libc::greg_t; 23],
    /// Address of the next instruction.
    next: u64,
}

impl Registers<'_> {
    /// The register of an encoded number.
    fn get(&self, number: u8) -> u64 {
        const ORDER: [c_int; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        self.values[ORDER[usize::from(number)] as usize].cast_unsigned()
    }

    fn base(&self, at: Address) -> u64 {
        let base = match at.base {
            Base::None => 0,
            Base::Next => self.next,
            Base::Register(number) => self.get(number),
        };
        base.wrapping_add_signed(at.displacement.into())
    }

    fn index(&self, at: Address) -> u64 {
        at.index.map_or(0, |number| self.get(number)) << at.scale
    }

    /// The address of an operand that is no tile.
    fn operand(&self, at: Address) -> u64 {
        self.base(at).wrapping_add(self.index(at))
    }

    /// The address of a row of a tile.
    fn row(&self, at: Address, row: usize) -> u64 {
        self.base(at)
            .wrapping_add(self.index(at).wrapping_mul(row as u64))
    }
}

/// # Safety
///
/// The memory that the instruction names is valid for what it does.
unsafe fn apply(
    instruction: Instruction,
    tiles: &mut Tiles,
    registers: &Registers<'_>,
) -> Result<(), Refusal> {
    match instruction {
        Instruction::LoadConfig(at) => {
            let config = registers.operand(at) as *const [u8; 64];
            // SAFETY: the caller's word; bytes need no alignment.
            tiles.load_config(unsafe { &*config })
        }
        Instruction::StoreConfig(at) => {
            let config = registers.operand(at) as *mut [u8; 64];
            // SAFETY: as above.
            unsafe { *config = tiles.config() };
            Ok(())
        }
        Instruction::Release => {
            tiles.release();
            Ok(())
        }
        Instruction::Zero(tile) => tiles.zero(tile),
        Instruction::Load { tile, at } => tiles.load(tile, |row, bytes| {
            let from = registers.row(at, row) as *const u8;
            // SAFETY: as above, and a tile does not overlap the program's memory.
            unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        }),
        Instruction::Store { tile, at } => tiles.store(tile, |row, bytes| {
            let to = registers.row(at, row) as *mut u8;
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        }),
        Instruction::Product { kind, sum, a, b } => tiles.product(kind, sum, a, b),
    }
}

/// Says what is wrong and ends the process, without allocating.
fn refuse(instruction: Instruction, at: u64, refusal: Refusal) -> ! {
    struct Message {
        bytes: [u8; 256],
        length: usize,
    }
    impl fmt::Write for Message {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let rest = &mut self.bytes[self.length..];
            let length = text.len().min(rest.len());
            rest[..length].copy_from_slice(&text.as_bytes()[..length]);
            self.length += length;
            Ok(())
        }
    }
    let mut message = Message {
        bytes: [0; 256],
        length: 0,
    };
    let name = instruction.name();
    // Nothing here can fail, and there is nobody left to tell.
    let _ = writeln!(message, "invalid `{name}` at {at:#x}: {refusal}");
    // SAFETY: the bytes are the message's own; both calls are allowed in a handler.
    unsafe {
        libc::write(
            libc::STDERR_FILENO,
            message.bytes.as_ptr().cast(),
            message.length,
        );
        libc::abort()
    }
}
