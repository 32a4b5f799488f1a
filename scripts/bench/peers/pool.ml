(* One repetition of one case by OCaml's Parmap: parmap CASE N. Prints "name value" lines; seconds is
   the measured part, after the same warm-up as plua's. SPDX-License-Identifier: MIT *)
let workers = 2
let ms = 700_000 (* passes of spin that take about a millisecond *)
let now = Unix.gettimeofday
let say what value = Printf.printf "%s %.9f\n" what value

let seconds f =
  Gc.full_major ();
  let start = now () in
  ignore (Sys.opaque_identity (f ()));
  now () -. start

let cube x = x ** 3.
let floats n = List.init n (fun i -> float_of_int (i + 1))

let spin passes =
  let x = ref 0.5 in
  for _ = 1 to passes do
    x := (Sys.opaque_identity !x *. 1.0000001) +. 1e-9
  done;
  !x

let map ?chunksize f data = Parmap.parmap ?chunksize ~ncores:workers f (Parmap.L data)

let skewed place =
  let at = List.assoc place [ ("first", 0); ("middle", 20); ("last", 40) ] in
  List.init 41 (fun i -> if i = at then 400 * ms else 10 * ms)

let greedy data =
  let free = Array.make workers 0 in
  let give cost =
    Array.sort compare free;
    free.(0) <- free.(0) + cost
  in
  List.iter give data;
  Array.fold_left max 0 free

let beside_serial data =
  let half = List.length data / 2 in
  let first = List.filteri (fun i _ -> i < half) data in
  let rest = List.filteri (fun i _ -> i >= half) data in
  let before = seconds (fun () -> List.map spin first) in
  say "seconds" (seconds (fun () -> map spin data));
  say "serial" (before +. seconds (fun () -> List.map spin rest))

let skew place =
  let data = skewed place in
  beside_serial data;
  say "best" (float_of_int (greedy data) /. float_of_int (List.fold_left ( + ) 0 data))

let list = floats 1000
let text i = String.concat "" (List.init ((1 lsl 20) / 16) (fun _ -> Printf.sprintf "%016d" i))

let run case n =
  match case with
  | "oneshot" ->
      let data = floats n in
      say "seconds" (seconds (fun () -> map cube data))
  | "chunk1" ->
      let data = floats n in
      say "seconds" (seconds (fun () -> map ~chunksize:1 cube data))
  | "lists" ->
      let data = floats n in
      (* New floats each time: known ones would be sent as references. *)
      say "seconds" (seconds (fun () -> map (fun x -> List.map (fun y -> x +. y) list) data))
  | "strings_both" ->
      let data = List.init n text in
      say "seconds" (seconds (fun () -> map (fun s -> s) data))
  | "cpu" -> beside_serial (List.init n (fun _ -> ms))
  | "skew_first" -> skew "first"
  | "skew_middle" -> skew "middle"
  | "skew_last" -> skew "last"
  | "thousand" ->
      let data = floats n in
      say "seconds"
        (seconds (fun () -> Parmap.parmap ~ncores:n ~chunksize:1 cube (Parmap.L data)))
  | "start" ->
      print_endline (String.concat " " (List.map string_of_float (map cube (floats 6))))
  | _ -> failwith case

let () = run Sys.argv.(1) (int_of_string Sys.argv.(2))
