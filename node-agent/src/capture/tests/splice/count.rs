//! Every byte is counted once: by TCP, or as spliced.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::lab::Lab;

/// Bytes that the other end has acknowledged, as TCP counts them.
fn acknowledged(socket: &impl AsFd) -> u64 {
    let mut info = [0_u64; 32];
    let mut length = size_of_val(&info) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `info`, and both outlive the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    assert_eq!(result, 0);
    // `tcpi_bytes_acked`, without the SYN.
    info[15] - 1
}

#[test]
fn every_byte_is_counted_once() {
    let lab = Lab::new();
    let listener = lab.listen(7000);
    let mut dialler = lab.dialler(&listener);
    for message in [100, 65_536, 1 << 20] {
        let connection = dialler.dial(&listener, true);
        let cookies = connection.cookies;
        let (mut client, mut server) = connection.blocking();
        let total = message * 64;
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            server.read_exact(&mut vec![0; total]).unwrap();
            server
        });
        for _ in 0..64 {
            client.write_all(&vec![7; message]).unwrap();
        }
        let _server = reader.join().unwrap();
        // The last bytes are acknowledged late.
        std::thread::sleep(Duration::from_millis(400));
        let spliced = dialler.ends.get(cookies[0]).sent;
        let by_tcp = acknowledged(&client);
        assert_eq!(spliced + by_tcp, total as u64, "{spliced} spliced, {by_tcp} by TCP, messages of {message}");
        assert_eq!(dialler.ends.get(cookies[1]).received, spliced);
    }
}
