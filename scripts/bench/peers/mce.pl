# One repetition of one case by Perl's MCE: mce.pl CASE N. Prints "name value" lines; seconds is the
# measured part, after the same warm-up as plua's. SPDX-License-Identifier: MIT
use strict;
use warnings;
use List::Util qw(sum max);
use MCE::Loop;
use MCE::Map;
use Time::HiRes qw(time);

my $WORKERS = 2;
my $MS = 16000; # passes of spin that take about a millisecond
my ($case, $n) = @ARGV;
my @list = map { $_ + 0.0 } 1 .. 1000;

sub spin { my $x = 0.5; $x = $x * 1.0000001 + 1e-9 for 1 .. $_[0]; return $x }
sub say_it { printf "%s %.9f\n", @_ }
sub seconds { my $f = shift; my $t = time; $f->(); return time - $t }
sub floats { return map { $_ + 0.0 } 1 .. $_[0] }
sub strings { return map { sprintf('%016d', $_) x ((1 << 20) / 16) } 1 .. $_[0] }
sub team { MCE::Map->init(max_workers => $_[0], chunk_size => $_[1] // 'auto') }

sub skewed {
  my @data = (10 * $MS) x 40;
  splice @data, { first => 0, middle => 20, last => 40 }->{ $_[0] }, 0, 400 * $MS;
  return @data;
}

sub greedy {
  my @free = (0) x $WORKERS;
  for (@_) { @free = sort { $a <=> $b } @free; $free[0] += $_ }
  return max @free;
}

# MCE keeps its workers for the next call of the same block, so the call before is the warm-up.
sub cubes { my @out = mce_map { $_**3 } @_ }
sub cold { my @data = @_; say_it(seconds => seconds(sub { cubes(@data); MCE::Map->finish })) }
sub warm { my ($f, $first, $data) = @_; $f->(@$first); say_it(seconds => seconds(sub { $f->(@$data) })) }
sub sizes { my @out = mce_map { length $_ } @_ }
sub echoes { my @out = mce_map { $_ } @_ }
sub spins { my @out = mce_map { spin($_) } @_ }

sub beside_serial {
  my @data = @_;
  spins(1, 1);
  my $half = int(@data / 2);
  my $before = seconds(sub { my @out = map { spin($_) } @data[0 .. $half - 1] });
  say_it(seconds => seconds(sub { spins(@data) }));
  my $after = seconds(sub { my @out = map { spin($_) } @data[$half .. $#data] });
  say_it(serial => $before + $after);
}

sub kilobytes {
  open my $status, '<', '/proc/self/status' or die;
  while (<$status>) { return $1 if /^$_[0]:\s*(\d+)/ }
}

# In order and lazily: MCE asks an iterator for chunks, what comes early waits for its turn.
sub lazily {
  my ($i, $next, $total, %early) = (0, 1, 0);
  my $before = kilobytes('VmRSS');
  MCE::Loop->init(max_workers => $WORKERS, chunk_size => 1000, gather => sub {
    my ($id, $sum) = @_;
    $early{$id} = $sum;
    while (exists $early{$next}) { $total += $_ for @{ delete $early{ $next++ } } }
  });
  say_it(seconds => seconds(sub {
    mce_loop {
      my ($mce, $chunk, $id) = @_;
      MCE->gather($id, [ map { $_**3 } @$chunk ]);
    } sub {
      my $first = $i + 1;
      return if $first > $n;
      $i += 1000;
      return map { $_ + 0.0 } $first .. ($i < $n ? $i : $n);
    };
  }));
  say_it(growth_mb => (kilobytes('VmHWM') - $before) / 1024);
}

my %cases = (
  oneshot => sub { team($WORKERS); cold(floats($n)) },
  warm => sub { team($WORKERS); my @data = floats($n); warm(\&cubes, \@data, \@data) },
  chunk1 => sub { team($WORKERS, 1); cold(floats($n)) },
  imap => \&lazily,
  start => sub { team($WORKERS); print join(' ', mce_map { $_**3 } 1 .. 6), "\n" },
  lists => sub { team($WORKERS); my @data = floats($n);
    say_it(seconds => seconds(sub { my @out = mce_map { [@list] } @data; MCE::Map->finish })) },
  strings_in => sub { team($WORKERS, 1); my @data = strings($n); warm(\&sizes, [ @data[0, 1] ], \@data) },
  strings_both => sub { team($WORKERS, 1); my @data = strings($n); warm(\&echoes, [ @data[0, 1] ], \@data) },
  cpu => sub { team($WORKERS); beside_serial(($MS) x $n) },
  thousand => sub { team($n, 1); cold(floats($n)) },
);
for my $place (qw(first middle last)) {
  $cases{"skew_$place"} = sub {
    team($WORKERS);
    my @data = skewed($place);
    beside_serial(@data);
    say_it(best => greedy(@data) / sum(@data));
  };
}
$cases{$case}->();
