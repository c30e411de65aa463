# Writes the static configuration of eth0 for the number that the kernel's command line names, or the first argument.
number=${1:-$(sed -n 's/.*lab\.number=\([0-9]*\).*/\1/p' /proc/cmdline)}
mkdir -p /run/systemd/network
cat >/run/systemd/network/eth0.network <<END
[Match]
Name=eth0
[Link]
MACAddress=52:54:00:00:00:$(printf %02x "$number")
[Network]
Address=198.51.100.$number/24
Address=2001:db8:ffff::$number/64
Gateway=198.51.100.2
Gateway=2001:db8:ffff::2
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
IPv6DuplicateAddressDetection=0
DHCP=no
END
