// Segment an image with an exported student, by onnxruntime's C++ API.
//
//     segment student.int8.onnx street.ppm classes.pgm > facts.json
//
// reads a binary PPM (8-bit RGB), writes the class of each pixel as a binary PGM, and prints the facts in the file's
// metadata: names, label ids and colours of the classes, as JSON.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: segment MODEL.onnx IMAGE.ppm CLASSES.pgm\n";
    return 2;
  }
  std::ifstream file(argv[2], std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  file.get();  // the one white space before the pixels
  if (!file || magic != "P6" || largest != 255 || width < 32 || height < 32) {
    std::cerr << argv[2] << ": no 8-bit binary PPM of at least 32x32 pixels\n";
    return 1;
  }
  std::vector<uint8_t> pixels(3 * width * height);
  file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()));
  if (!file) {
    std::cerr << argv[2] << ": cut short\n";
    return 1;
  }

  // One environment a process, one session a model. A session may be used by several threads at once.
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "segment");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(0);  // 0 is all cores
  Ort::Session session(env, argv[1], options);

  const std::array<int64_t, 4> shape{1, height, width, 3};  // frames, rows, columns, RGB
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"image"};
  const char* outputs[] = {"classes"};
  auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs, 1);
  const uint8_t* classes = results[0].GetTensorData<uint8_t>();  // rows, columns

  std::ofstream out(argv[3], std::ios::binary);
  out << "P5\n" << width << " " << height << "\n255\n";
  out.write(reinterpret_cast<const char*>(classes), width * height);

  Ort::AllocatorWithDefaultOptions allocator;
  auto facts = session.GetModelMetadata().LookupCustomMetadataMapAllocated("segdistill", allocator);
  std::cout << facts.get() << "\n";
  return out ? 0 : 1;
} catch (const Ort::Exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
